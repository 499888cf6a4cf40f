"""Celery behind Flask, as Celery's and Flask's own documents show it: POST submits, GET asks."""

import os

from celery import Celery
from celery.result import AsyncResult
from flask import Flask

REDIS = "redis+socket://" + os.environ["BENCH_REDIS"]

queue = Celery("front_celery", broker=REDIS, backend=REDIS)
queue.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
app = Flask(__name__)


@queue.task
def version():
    return '{"server":"arango","version":"1.4.3"}'


@app.post("/submit")
def submit():
    return {"id": version.delay().id}, 202


@app.get("/result/<task_id>")
def result(task_id):
    found = AsyncResult(task_id, app=queue)
    # One look at Redis for both: `ready()` and then `result` would be two.
    meta = found._get_task_meta()
    if meta["status"] != "SUCCESS":
        return {"state": meta["status"]}, 202
    return meta["result"]
