"""Workflows over HTTP with Python alone: a worker. What is asked and answered is in docs/workflow-http.md."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Task:
    """Something that a workflow asks for; ``yield`` gives its result once it is there."""

    asked, result, error = False, None, None

    def __init__(self, **action):
        self.action, self.tasks = action, [self]
        self.done = "send" in action or "start" in action  # Nothing comes back of these.


def activity(name, input=None, **more):
    return Task(activity=name, input=input, **more)


def timer(when):
    return Task(timer=when)


def event(name):
    return Task(wait=name)


def workflow(name, input=None, **more):
    return Task(workflow=name, input=input, **more)


class all_of:
    """Is there when all of its tasks are; gives their results."""

    def __init__(self, *tasks):
        self.tasks = tasks

    done = property(lambda self: all(task.done for task in self.tasks))
    error = property(lambda self: next((task.error for task in self.tasks if task.error), None))
    result = property(lambda self: [task.result for task in self.tasks])


class any_of(all_of):
    """Is there when one of its tasks is; gives that one."""

    done = property(lambda self: any(task.done for task in self.tasks))
    error = None
    result = property(lambda self: next(task for task in self.tasks if task.done))


class Failed(Exception):
    """What a task failed with, as the workflow meets it."""

    def __init__(self, error):
        super().__init__(error["message"])
        self.error = {"type": error["type"], "message": error["message"]}


def run(code, history):
    """Run a workflow from its beginning, over all that has happened; give all that it asks for, and how it ended."""
    asked, raised, answer, waits = [], [], {}, Task()
    waits.done = True  # The code waits for nothing yet.

    def settle(task, result=None, error=None):
        if task is not None and not task.done:
            task.done, task.result, task.error = True, result, error

    def go_on():
        nonlocal waits
        while waits.done:
            waits = code.throw(Failed(waits.error)) if waits.error else code.send(waits.result)
            for task in waits.tasks:
                if not task.asked:
                    task.asked = True
                    asked.append(task)
            match_events()

    def match_events():  # Each wait takes the first event of its name that is left.
        for task in asked if raised else ():
            if not task.done and (name := task.action.get("wait")):
                found = next((each for each in raised if each["name"] == name), None)
                if found is not None:
                    raised.remove(found)
                    settle(task, found["data"])

    try:
        go_on()
        for happened in history:
            number = happened.get("task", 0)
            task = asked[number - 1] if 0 < number <= len(asked) else None
            match happened["event"]:
                case "completed":
                    settle(task, happened["result"])
                case "failed":
                    settle(task, error=happened["error"])
                case "fired":
                    settle(task)
                case "raised":
                    raised.append(happened)
                    match_events()
            go_on()
    except StopIteration as end:
        answer = {"complete": end.value}
    except Exception as error:
        answer = {"fail": getattr(error, "error", {"type": type(error).__name__, "message": str(error)})}
    return {"actions": [task.action for task in asked], **answer}


def serve(workflows, activities):
    """Serve functions by their names until the program ends."""
    config = {"workflows": list(workflows), "activities": list(activities)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # Head and body go out together,
        disable_nagle_algorithm = True  # or, where they are large, one behind the other at once.

        def do_GET(self):
            self.answer(*((200, config) if self.path == "/dapr/config" else (404, None)))

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = json.loads(body) if body else None
            kind, _, name = unquote(self.path).removeprefix("/workflow/").partition("/")
            try:
                if kind == "run" and name in workflows:
                    self.answer(200, run(workflows[name](given["input"]), given["history"]))
                elif kind == "activity" and name in activities:
                    self.answer(200, activities[name](given, self.headers))
                else:
                    self.answer(404, None)
            except Exception as error:
                self.answer(500, {"type": type(error).__name__, "message": str(error)})

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024  # Many activities may begin at once; the default is 5.

    port = int(os.environ.get("APP_PORT", "3000"))
    with Server(("127.0.0.1", port), Handler) as server:
        print(f"Worker listening on port {port}", flush=True)
        server.serve_forever()
