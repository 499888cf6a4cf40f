"""huey with Redis behind Flask: POST submits, GET asks."""

import os

from flask import Flask
from huey import RedisHuey

queue = RedisHuey("bench", url="unix://" + os.environ["BENCH_REDIS"])
app = Flask(__name__)


@queue.task()
def version():
    return '{"server":"arango","version":"1.4.3"}'


@app.post("/submit")
def submit():
    return {"id": version().id}, 202


@app.get("/result/<task_id>")
def result(task_id):
    # huey's results are read once, as deferd's.
    found = queue.result(task_id)
    if found is None:
        return {"state": "pending"}, 202
    return found
