"""Health check of a container: exit code 0 if ``http://<own address>:PORT/PATH`` answers 2xx.

Call: ``python -S probe.py PORT PATH``.
"""

import http.client
import socket
import sys

TIMEOUT_S = 4.0


def answers(port: int, path: str) -> bool:
    """Whether the process of this container is well."""
    for host in dict.fromkeys(("127.0.0.1", socket.gethostbyname(socket.gethostname()))):
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path)
            return 200 <= connection.getresponse().status < 300
        except OSError:
            continue
        finally:
            connection.close()
    return False


if __name__ == "__main__":
    sys.exit(not answers(int(sys.argv[1]), sys.argv[2]))
