"""Pushing images to a registry: the writing half of the OCI distribution protocol."""

import http.client
import json
import urllib.parse


class PushError(Exception):
    """The registry cannot be reached, or said no."""


class Registry:
    """A registry at http://HOST:PORT."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise PushError(f"{url}: a registry's address is http://HOST:PORT")
        self.url = url
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=30)

    def request(self, method, path, body=b"", headers=None):
        try:
            self.connection.request(method, path, body=body, headers=headers or {})
            response = self.connection.getresponse()
            return response, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise PushError(f"{self.url} does not answer: {error}") from error

    def expect(self, status, method, path, body=b"", headers=None):
        response, answer = self.request(method, path, body, headers)
        if response.status != status:
            raise PushError(f"{method} {self.url}{path}: {response.status} {answer[:300].decode(errors='replace')}")
        return response

    def has(self, path):
        return self.request("HEAD", path)[0].status == 200

    def push(self, name, tag, descriptor, get):
        """Pushes what `descriptor` points at under `name:tag`. `get`: digest -> bytes. Returns the bytes sent."""
        return self.push_manifest(name, tag, descriptor, get)

    def push_manifest(self, name, tag, descriptor, get):
        body = get(descriptor["digest"])
        document = json.loads(body)
        sent = 0
        for child in document.get("manifests", []):
            sent += self.push_manifest(name, child["digest"], child, get)
        for blob in [document["config"], *document["layers"]] if "config" in document else []:
            sent += self.push_blob(name, blob["digest"], get)
        headers = {"Content-Type": descriptor["mediaType"]}
        self.expect(201, "PUT", f"/v2/{name}/manifests/{tag}", body, headers)
        return sent + len(body)

    def push_blob(self, name, digest, get):
        if self.has(f"/v2/{name}/blobs/{digest}"):
            return 0
        started = self.expect(202, "POST", f"/v2/{name}/blobs/uploads/")
        location = urllib.parse.urlsplit(started.getheader("Location", ""))
        query = location.query + ("&" if location.query else "") + "digest=" + urllib.parse.quote(digest)
        body = get(digest)
        headers = {"Content-Type": "application/octet-stream"}
        self.expect(201, "PUT", f"{location.path}?{query}", body, headers)
        return len(body)
