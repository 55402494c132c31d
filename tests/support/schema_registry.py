"""A Schema Registry small enough to stand in a test: real HTTP, a few answers."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Registry:
    """``/schemas/ids/N`` and ``/subjects/S/versions/V``; ``failures`` answers of ``status`` come first."""

    def __init__(self) -> None:
        self.answers = {}
        self.asked = []
        self.failures, self.status, self.told = 0, 503, "in trouble"
        self.login = None
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.partition("?")[0]
                registry.asked.append(path)
                status, answer = 200, registry.answers.get(path)
                if registry.login and self.headers.get("Authorization") != registry.login:
                    status, answer = 401, {"error_code": 40101, "message": "Unauthorized"}
                elif registry.failures:
                    registry.failures -= 1
                    status, answer = registry.status, {"error_code": 50001, "message": registry.told}
                elif answer is None:
                    status, answer = 404, {"error_code": 40403, "message": "Schema not found"}
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.address = f"127.0.0.1:{self.server.server_port}"

    def put(self, schema_id, schema, **more):
        self.answers[f"/schemas/ids/{schema_id}"] = {"schema": json.dumps(schema), **more}

    def put_protobuf(self, schema_id, file, *imported):
        """Descriptors, as a registry returns them with ``format=serialized``; those of ``imported`` are references."""

        def schema(each, **more):
            return {"schemaType": "PROTOBUF", "schema": base64.b64encode(each.SerializeToString()).decode(), **more}

        references = [{"name": each.name, "subject": each.name.replace("/", "-"), "version": 1} for each in imported]
        self.answers[f"/schemas/ids/{schema_id}"] = schema(file, references=references)
        for each, reference in zip(imported, references, strict=True):
            subject = reference["subject"]
            self.answers[f"/subjects/{subject}/versions/1"] = schema(each, subject=subject, version=1, id=1_000)

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
