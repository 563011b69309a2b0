"""Ask this container's own /healthz: exit code 0 when it says 200, else 1 and one line why.

``http.client`` and not ``urllib``: that would ask a proxy when the environment names one.
"""

import http.client
import os
import ssl
import sys

SECONDS = 3

port = int(os.environ.get("STREAMQUEUE_METRICS_PORT", "9464"))
connection: http.client.HTTPConnection
if os.environ.get("STREAMQUEUE_METRICS_CERT"):
    # The certificate names the machine's public address, not this one, and nothing leaves the
    # container: there is nobody to mistake it for.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=context)
else:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
try:
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"/healthz on port {port} says {answer.status}: {answer.read(500).decode()}")
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"/healthz on port {port} does not answer: {error}")
