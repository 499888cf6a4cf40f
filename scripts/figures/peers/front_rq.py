"""RQ behind Flask: POST submits, GET asks."""

import os

from flask import Flask
from redis import Redis
from rq import Queue
from rq.job import Job

from rq_task import version

connection = Redis.from_url("unix://" + os.environ["BENCH_REDIS"])
queue = Queue(connection=connection)
app = Flask(__name__)


@app.post("/submit")
def submit():
    return {"id": queue.enqueue(version, result_ttl=86400).id}, 202


@app.get("/result/<job_id>")
def result(job_id):
    job = Job.fetch(job_id, connection=connection)
    found = job.return_value()
    if found is None:
        return {"state": "pending"}, 202
    return found
