"""Draw over HTTP: python client.py URL PROMPT REFERENCE OUT. Needs httpx; the token, if any, is in DEADIFF_TOKEN."""

import os
import sys
import time
from pathlib import Path

import httpx

url, prompt, reference, out = sys.argv[1:]
headers = {"Authorization": f"Bearer {os.environ.get('DEADIFF_TOKEN', 'none')}"}
with httpx.Client(base_url=url, headers=headers, timeout=90) as service:
    picture = {"style": Path(reference).read_bytes()}
    while (answer := service.post("/v1/jobs/form", data={"prompt": prompt}, files=picture)).status_code in (429, 503):
        time.sleep(int(answer.headers.get("Retry-After", 2)))  # the queue is full: it says when to come back
    job = answer.json()
    while job.get("status") in ("queued", "running"):
        job = service.get(f"/v1/jobs/{job['id']}", params={"wait": 60}).json()
    if not job.get("pictures"):
        sys.exit(job["error"] or job["status"])  # one line: what, got, expected, next step
    Path(out).write_bytes(service.get(job["pictures"][0]["url"]).content)
