"""A server whose every result is cut on its way: job N is done with status N.

Its port is in FILE.port; FILE.asked has a line for each request that would delete a result."""

import os, socketserver, sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        fields = b"".join(iter(self.rfile.readline, b"\r\n")).decode().lower()
        path = fields.split(" ")[1]
        status = path.split("/")[3]
        if "override: put" in fields:
            with open(sys.argv[1] + ".asked", "a") as asked:
                asked.write("PUT\n")
        elif not path.endswith("/result"):
            log = "a line" if path.endswith("/log") else ""
            self.answer(200, f"asyncresult: {status}", len(log), log)
            return
        self.answer(status, f"x-arango-async-id: {status}", 100, "not all")

    def answer(self, status, field, length, content):
        head = f"HTTP/1.1 {status} Some\r\n{field}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        self.wfile.write((head + content).encode())


with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
    with open(sys.argv[1] + ".new", "w") as port:
        print(server.server_address[1], file=port)
    os.rename(sys.argv[1] + ".new", sys.argv[1] + ".port")
    open(sys.argv[1] + ".asked", "w").close()
    server.serve_forever()
