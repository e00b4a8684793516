#!/usr/bin/env python3
"""Smoke test of the sandbox gateway, by a client that shares no code with it.

Usage: smoke.py [path of fini-gateway]

Needs python3, the openssl command and libcrypto (for AES-256-GCM).  Prints one line a
check and ends with a status other than 0 when one fails.
"""
import base64, copy, ctypes, ctypes.util, hashlib, hmac, http.client, json, os, re, signal
import ssl, subprocess, sys, tempfile, threading, time, urllib.parse, uuid

GATEWAY = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "fini-gateway")
ISSUER, SUBJECT, MACHINE = "https://broker.example", "CP00010", str(uuid.uuid4())
PERSONAL = ("idType", "idCountryJurisdiction", "idNum", "fullNameEng", "fullNameChi")
failures = 0


def check(what, ok, detail=""):
    global failures
    print(("ok   " if ok else "FAIL ") + what + ("" if ok else "  " + str(detail)[:600]))
    if not ok:
        failures += 1


def equal(what, got, expected):
    check(what, got == expected, "got %r, expected %r" % (got, expected))


# --- cryptography ---------------------------------------------------------------------

crypto = ctypes.CDLL(ctypes.util.find_library("crypto"))
for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_gcm"):
    getattr(crypto, name).restype = ctypes.c_void_p


def gcm(key, iv, data, tag=None):
    """Encrypts to ciphertext and tag, or with a tag decrypts (None: tag wrong)."""
    ctx = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
    out, n = ctypes.create_string_buffer(len(data) + 16), ctypes.c_int()
    init, update, final = (("Encrypt", "Encrypt", "Encrypt") if tag is None else ("Decrypt",) * 3)
    getattr(crypto, "EVP_%sInit_ex" % init)(ctx, ctypes.c_void_p(crypto.EVP_aes_256_gcm()), None, key, iv)
    getattr(crypto, "EVP_%sUpdate" % update)(ctx, out, ctypes.byref(n), data, len(data))
    if tag is not None:
        crypto.EVP_CIPHER_CTX_ctrl(ctx, 0x11, 16, tag)
    rc = getattr(crypto, "EVP_%sFinal_ex" % final)(ctx, ctypes.create_string_buffer(16), ctypes.byref(n))
    result = out.raw[:len(data)] if rc == 1 else None
    if tag is None:
        made = ctypes.create_string_buffer(16)
        crypto.EVP_CIPHER_CTX_ctrl(ctx, 0x10, 16, made)
        result += made.raw
    crypto.EVP_CIPHER_CTX_free(ctx)
    return result


def sign(key, body, request_id, timestamp):
    return hmac.new(key, body + request_id.encode() + timestamp.encode(), hashlib.sha256).hexdigest()


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def rsa_key(path):
    subprocess.run(["openssl", "genrsa", "-out", path, "2048"], check=True, capture_output=True)
    text = subprocess.run(["openssl", "rsa", "-in", path, "-noout", "-modulus"], check=True, capture_output=True, text=True)
    return bytes.fromhex(text.stdout.strip().split("=")[1])


def jwks(path, modulus, expires=None):
    n = b64url(modulus)
    kid = b64url(hashlib.sha256(('{"e":"AQAB","kty":"RSA","n":"%s"}' % n).encode()).digest())
    with open(path, "w") as f:
        json.dump({"keys": [{"kty": "RSA", "e": "AQAB", "use": "sig", "kid": kid, "alg": "RS256", "n": n,
                             "exp": expires or int(time.time()) + 86400}]}, f)


def jwt(key, claims, header={"typ": "JWT", "alg": "RS256"}):
    text = b64url(json.dumps(header).encode()) + "." + b64url(json.dumps(claims).encode())
    signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=text.encode(), check=True, capture_output=True).stdout
    return text + "." + b64url(signature)


def wrap(spki, text):
    """RSA PKCS#1 v1.5 with the modulus found at the end of an SPKI."""
    der = base64.b64decode(spki)
    at = der.index(b"\x02\x82\x01\x01\x00") + 5
    n = int.from_bytes(der[at:at + 256], "big")
    pad = bytes(b or 1 for b in os.urandom(256 - 3 - len(text)))
    m = b"\x00\x02" + pad + b"\x00" + text
    return base64.b64encode(pow(int.from_bytes(m, "big"), 65537, n).to_bytes(256, "big")).decode()


def walk(value, key, change):
    if isinstance(value, list):
        return [walk(v, None, change) for v in value]
    if isinstance(value, dict):
        return {k: walk(v, k, change) for k, v in value.items()}
    return change(value) if key in PERSONAL and value is not None else value


# --- the gateway and its client ---------------------------------------------------------

class Gateway:
    def __init__(self, folder, *options):
        self.folder = folder
        self.process = subprocess.Popen(
            [GATEWAY, "--self-signed", folder + "/ca.pem", "--agent-jwks", folder + "/agent.jwks",
             "--machine-jwks", folder + "/machine.jwks", "--agent-issuer", ISSUER, "--agent-subject", SUBJECT,
             "--machine-id", MACHINE, "--log", folder + "/log"] + list(options),
            stdout=subprocess.PIPE, text=True)
        ready = json.loads(self.process.stdout.readline())
        self.port, self.admin_port, self.url = ready["port"], ready["admin_port"], ready["url"]
        self.ssl = ssl.create_default_context(cafile=folder + "/ca.pem")
        self.aud = self.url + "/openam/oauth2/eu/access_token"
        self.token, self.meta, self.connection = None, None, None

    def admin(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=60)
        text = body if body is None or isinstance(body, str) else json.dumps(body)
        c.request(method, path, text.encode() if text is not None else None)
        r = c.getresponse()
        raw = r.read()
        c.close()
        if r.getheader("Content-Type") == "application/x-ndjson":
            return [json.loads(line) for line in raw.splitlines()]
        return json.loads(raw)

    def stats(self):
        return self.admin("GET", "/stats")

    def raw(self, method, path, body=None, headers={}, fresh=False, timeout=30):
        if fresh or self.connection is None:
            self.connection = http.client.HTTPSConnection("localhost", self.port, context=self.ssl, timeout=timeout)
        try:
            self.connection.request(method, path, body, headers)
            r = self.connection.getresponse()
            return r.status, r.read(), r
        except Exception:
            self.connection.close()
            self.connection = None
            raise

    def claims(self, profile, **changes):
        base = {"aud": self.aud, "iss": ISSUER if profile == "agent" else MACHINE,
                "sub": SUBJECT if profile == "agent" else MACHINE, "exp": int(time.time()) + 60}
        base.update(changes)
        return {k: v for k, v in base.items() if v is not None}

    def get_token(self, agent={}, machine={}, form={}, agent_key="agent", machine_key="machine", header=None):
        extra = {"header": header} if header else {}
        fields = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                  "assertion": jwt(self.folder + "/%s.pem" % agent_key, self.claims("agent", **agent), **extra),
                  "client_assertion_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                  "client_assertion": jwt(self.folder + "/%s.pem" % machine_key, self.claims("machine", **machine))}
        fields.update(form)
        status, body, _ = self.raw("POST", "/openam/oauth2/eu/access_token", urllib.parse.urlencode(fields),
                                   {"Content-Type": "application/x-www-form-urlencoded"})
        answer = json.loads(body)
        if status == 200:
            self.token = answer["access_token"]
        return status, answer

    def headers(self, **changes):
        h = {"Authorization": "Bearer %s" % self.token, "Accept": "application/json", "Accept-Language": "en-US"}
        h.update({k.replace("_", "-"): v for k, v in changes.items()})
        return {k: v for k, v in h.items() if v is not None}

    def get(self, path, **changes):
        status, body, r = self.raw("GET", path, None, self.headers(**changes))
        return status, json.loads(body)

    def refresh(self):
        before = time.time()
        status, answer = self.get("/api/crypto/meta")
        assert status == 200, answer
        self.meta = answer["data"]["publicKey"]
        self.difference = answer["data"]["serverTimestamp"] - int((before + time.time()) * 500)
        return answer

    def sealed(self, endpoint, payload, request_id=None, corrupt=None, text=None, spki=None, wrapped=None, timeout=30, fresh=False,
               encrypt=True, **changes):
        """Returns status and answer, decrypted; the last raw answer stays in self.body."""
        key, iv = os.urandom(32), os.urandom(12)

        def enc(v):
            return "%enc_%" + base64.b64encode(gcm(key, iv, v.encode() if isinstance(v, str) else v)).decode()

        def dec(v):
            if not v.startswith("%enc_%"):
                return v
            raw = base64.b64decode(v[6:])
            out = gcm(key, iv, raw[:-16], raw[-16:])
            return "TAMPERED" if out is None else out.decode()
        body = text or json.dumps(walk(payload, None, enc) if encrypt else payload, ensure_ascii=False)
        if corrupt:
            body = corrupt(body)
        body = body.encode()
        rid = request_id or uuid.uuid4().hex
        ts = str(int(time.time() * 1000) + self.difference)
        h = {"X_FINI_ENCRYPTED_KEY": wrap(spki or self.meta, wrapped or base64.b64encode(key) + b"#" + base64.b64encode(iv)),
             "X_FINI_REQUEST_ID": rid, "X_FINI_TIMESTAMP": ts, "X_FINI_ENCRYPTION_CLIENT": "YES"}
        if changes.get("X_FINI_TIMESTAMP"):
            ts = changes["X_FINI_TIMESTAMP"]
        h["X_FINI_SIGNATURE"] = sign(key, body, rid, ts)
        h.update(changes)
        status, self.body, self.response = self.raw("POST", "/api/eipo/subscriptions/%s/v1" % endpoint, body,
                                                    self.headers(**h), timeout=timeout, fresh=fresh)
        answer = json.loads(self.body)
        return status, walk(answer, None, dec)

    def plant(self, endpoint, action, **arguments):
        self.admin("DELETE", "/faults")
        answer = self.admin("POST", "/faults", [dict(arguments, endpoint=endpoint, action=action)])
        assert answer == {}, answer

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "hung"


def entry(n, **changes):
    e = {"requestID": str(n), "ipoID": "1234", "idList": [{"idType": "HKID", "idCountryJurisdiction": "HKG",
         "idNum": "A123456(3)", "fullNameEng": "CHAN Tai Man O'Brien \"\\", "fullNameChi": "陳大文𠮷"}],
         "appQuantity": "1000", "firmID": "00000", "ownRef": "ref-%s" % n}
    e.update(changes)
    return {k: v for k, v in e.items() if v is not None}


def query(**data):
    top = {k: data.pop(k) for k in ("size", "nextCursor") if k in data}
    q = {"data": data, "size": 100, "nextCursor": "0"}
    q.update(top)
    return q


def first_code(answer):
    return answer["data"][0]["exception"][0]["recordErrorCode"] if answer["data"][0]["exception"] else None


def clone(g):
    """Another connection to the same gateway."""
    other = copy.copy(g)
    other.connection = None
    return other


# --- checks ------------------------------------------------------------------------------

def tokens(g):
    for spelling in ("grant-type:jwt-bearer", "assertion-type:jwt-bearer", "client-assertion-type:jwt-bearer"):
        status, a = g.get_token(form={"client_assertion_type": "urn:ietf:params:oauth:" + spelling})
        equal("token under " + spelling, (status, a.get("scope"), a.get("token_type"), a.get("expires_in")), (200, SUBJECT, "Bearer", 30))
    now = int(time.time())
    cases = [
        ("expired", dict(agent={"exp": now - 5}), "JWT has expired"),
        ("31 minutes", dict(agent={"exp": now + 1860}), "JWT expiration time is unreasonable"),
        ("exp as text", dict(agent={"exp": str(now + 60)}), "JWT assertion is expired or invalid"),
        ("exp fractional", dict(machine={"exp": now + 60.5}), "JWT assertion is expired or invalid"),
        ("a fifth claim", dict(agent={"iat": now}), "JWT assertion is expired or invalid"),
        ("no sub", dict(machine={"sub": None}), "JWT assertion is expired or invalid"),
        ("wrong aud", dict(agent={"aud": "https://elsewhere.example"}), "JWT assertion is not valid"),
        ("wrong iss", dict(machine={"iss": SUBJECT}), "JWT assertion is not valid"),
        ("wrong sub", dict(agent={"sub": "CP00011"}), "JWT assertion is not valid"),
        ("machine's key for agent", dict(agent_key="machine"), "JWT assertion is not valid"),
        ("kid in header", dict(header={"typ": "JWT", "alg": "RS256", "kid": "x"}), "JWT assertion is not valid"),
        ("alg none", dict(header={"typ": "JWT", "alg": "none"}), "JWT assertion is not valid"),
        ("no JWT", dict(form={"assertion": "abc"}), "JWT could not parse"),
        ("no JSON", dict(form={"assertion": "YWJj.YWJj.YWJj"}), "JWT could not parse"),
    ]
    for name, arguments, description in cases:
        status, a = g.get_token(**arguments)
        equal("token refused: " + name, (status in (400, 401), a.get("error_description")), (True, description))
    equal("token refused: grant type", g.get_token(form={"grant_type": "password"})[1].get("error"), "unsupported_grant_type")
    equal("token refused: assertion type", g.get_token(form={"client_assertion_type": "x"})[1].get("error"), "invalid_client")
    status, a = g.get_token(agent={"exp": int(time.time()) + 1799})
    equal("29:59 minutes are fine", status, 200)


def access(g):
    equal("meta", g.get("/api/crypto/meta")[0], 200)
    equal("no token", g.get("/api/crypto/meta", Authorization=None)[0], 401)
    equal("bad token", g.get("/api/crypto/meta", Authorization="Bearer x")[0], 401)
    equal("no Accept", g.get("/api/crypto/meta", Accept="*/*")[0], 406)
    equal("no Accept-Language", g.get("/api/crypto/meta", Accept_Language=None)[0], 406)
    equal("no endpoint", g.get("/api/eipo/nothing/v1")[0], 404)
    equal("wrong method", g.raw("POST", "/api/crypto/meta", "", g.headers())[0], 405)
    g.admin("POST", "/config", {"entitle": ["funding"]})
    equal("not entitled", g.sealed("query", query(ipoID="1234"))[0], 403)
    g.admin("POST", "/config", {"entitle": ["subscriptions", "funding"]})
    g.admin("POST", "/expire-tokens")
    equal("tokens expired", g.get("/api/crypto/meta")[0], 401)
    g.admin("POST", "/config", {"tokenLifetime": 0.3})
    g.get_token()
    equal("short token works", g.get("/api/crypto/meta")[0], 200)
    deadline = time.time() + 5
    while g.get("/api/crypto/meta")[0] == 200 and time.time() < deadline:
        time.sleep(0.05)
    check("short token expires", time.time() < deadline)
    g.admin("POST", "/config", {"tokenLifetime": 600})
    g.get_token()


def envelope(g):
    q = query(ipoID="1234")
    for name, arguments, code in [
        ("no request ID", {"X_FINI_REQUEST_ID": None}, "411001"),
        ("request ID with hyphens", {"X_FINI_REQUEST_ID": str(uuid.uuid4())}, "411001"),
        ("no timestamp", {"X_FINI_TIMESTAMP": None}, "411003"),
        ("timestamp late", {"X_FINI_TIMESTAMP": str(int(time.time() * 1000) - 300500)}, "411004"),
        ("timestamp early", {"X_FINI_TIMESTAMP": str(int(time.time() * 1000) + 302000)}, "411004"),
        ("timestamp no number", {"X_FINI_TIMESTAMP": "12x"}, "411003"),
        ("no key", {"X_FINI_ENCRYPTED_KEY": None}, "411005"),
        ("key no base64", {"X_FINI_ENCRYPTED_KEY": "%%"}, "411006"),
        ("wrapped text wrong", {"wrapped": b"hello#world"}, "411006"),
        ("signature upper case", {"X_FINI_SIGNATURE": "A" * 64}, "411009"),
        ("no signature", {"X_FINI_SIGNATURE": None}, "411009"),
        ("signature wrong", {"X_FINI_SIGNATURE": "a" * 64}, "411008"),
        ("client not YES", {"X_FINI_ENCRYPTION_CLIENT": "yes"}, "411010"),
        ("no client header", {"X_FINI_ENCRYPTION_CLIENT": None}, "411010"),
    ]:
        status, a = g.sealed("query", q, **arguments)
        equal("envelope: " + name, (status, a["code"]), (400, code))
    add = {"data": [entry(1)]}
    flip = lambda b: re.sub(r"(%enc_%)(.)", lambda m: m.group(1) + ("B" if m.group(2) != "B" else "C"), b, count=1)
    equal("tampered field", g.sealed("add", add, corrupt=flip)[1]["code"], "411011")
    equal("field without a tag", g.sealed("add", {"data": [entry(1, idList=[{"idNum": "%enc_%AAAA"}])]}, encrypt=False)[1]["code"], "411011")
    equal("plain field", g.sealed("add", add, encrypt=False)[1]["code"], "411999")
    equal("field not UTF-8", g.sealed("add", {"data": [entry(1, idList=[{"idType": b"\xff\xfe"}])]})[1]["code"], "411011")
    equal("body no JSON", g.sealed("add", None, text="{{")[1]["code"], "400900")
    equal("0 entries", g.sealed("add", {"data": []})[1]["code"], "405904")
    equal("1001 entries", g.sealed("add", {"data": [entry(i) for i in range(1001)]})[1]["code"], "405904")
    old = g.meta
    g.admin("POST", "/rotate-key")
    equal("old key", g.sealed("query", q)[1]["code"], "411007")
    g.refresh()
    check("new key is new", g.meta != old)
    equal("new key", g.sealed("query", q)[0], 200)
    g.admin("POST", "/config", {"clockSkew": 400000})
    equal("skewed clock", g.sealed("query", q)[1]["code"], "411004")
    g.refresh()
    equal("skew measured", g.sealed("query", q)[0], 200)
    g.admin("POST", "/config", {"clockSkew": 0})
    g.refresh()
    rid = uuid.uuid4().hex
    equal("a refused ID", g.sealed("query", q, request_id=rid, X_FINI_SIGNATURE="b" * 64)[1]["code"], "411008")
    equal("... is not used up", g.sealed("query", q, request_id=rid)[0], 200)
    equal("... a processed one is", g.sealed("query", q, request_id=rid)[1]["code"], "411002")
    equal("... in any case of letters", g.sealed("query", q, request_id=rid.upper())[1]["code"], "411002")


def subscriptions(g):
    g.admin("POST", "/reset")
    status, a = g.sealed("add", {"data": [entry(1), entry(2, ownRef="  spaced  ", bcan="BCAN1", nested={"a": [1, {"b": None}]})]})
    equal("add", (status, a["code"], [d["requestID"] for d in a["data"]], [d["exception"] for d in a["data"]]), (200, "0", [1, 2], [[], []]))
    check("record ID", all(re.fullmatch(r"[0-9]{16}A", d["recordID"]) for d in a["data"]), a)
    ids = [d["recordID"] for d in a["data"]]
    dump = g.admin("GET", "/dump")
    equal("dump", [(r["recordID"], r["ownRef"], r["subFlowStatus"]) for r in dump], [(ids[0], "ref-1", "10"), (ids[1], "spaced", "10")])
    equal("decrypted", dump[0]["idList"], entry(1)["idList"])
    equal("unknown fields kept", (dump[1]["bcan"], dump[1]["nested"], "requestID" in dump[1]), ("BCAN1", {"a": [1, {"b": None}]}, False))
    rejected = [
        (entry(1, ipoID="nope"), "400101"), (entry(1, ipoID=None), "400101"), (entry(1, ipoID="1237"), "400102"),
        (entry(1, appQuantity="0"), "400103"), (entry(1, appQuantity="-5"), "400103"), (entry(1, appQuantity="1.5"), "400103"),
        (entry(1, appQuantity="9" * 40), "400103"), (entry(1, appQuantity=None), "400103"), (entry(1, idList=[]), "400104"),
        (entry(1, idList=None), "400104"), (entry(1, idList="x"), "400104"), (entry(1, idList=[{"idNum": "1", "fullNameEng": "x"}]), "400105"),
        (entry(1, idList=[{"idType": "PASSPORT", "fullNameEng": "x"}]), "400106"),
        (entry(1, idList=[{"idType": "PASSPORT", "idNum": "1", "fullNameChi": None}]), "400107"),
        (entry(1, idList=[{"idType": "HKID", "idNum": "A123456(4)", "fullNameEng": "x"}]), "400108"),
        (entry(1, requestID=7), "400100"), (entry(1, requestID=None), "400100"), ("text", "400100"), (entry("x"), "400100"),
    ]
    for e, code in rejected:
        status, a = g.sealed("add", {"data": [e]})
        equal("entry rejected %s" % code, (status, a["code"], first_code(a)), (200, "0", code))
    for number, ok in [("AB987654(3)", True), ("AB9876543", True), ("ab987654(2)", False), ("C668668(E)", True), ("G123456(A)", True), ("K1234567", None)]:
        a = g.sealed("add", {"data": [entry(1, ownRef=None, idList=[{"idType": "HKID", "idNum": number, "fullNameEng": "x"}])]})[1]
        if ok is not None:
            equal("HKID " + number, first_code(a), None if ok else "400108")
    a = g.sealed("add", {"data": [entry(1), entry(1)]})[1]
    equal("requestID twice", [len(d["exception"]) for d in a["data"]], [0, 1])
    s = g.stats()
    equal("a duplicate is accepted and counted", (s["duplicates"], s["duplicate_adds"]), (1, 1))
    twin = a["data"][0]["recordID"]
    status, a = g.sealed("change", {"data": [entry(1, recordID=twin, appQuantity="2000", note="new")]})
    equal("change", (status, a["data"][0]["recordID"], a["data"][0]["exception"]), (200, twin, []))
    r = [x for x in g.admin("GET", "/dump") if x["recordID"] == twin][0]
    equal("changed", (r["appQuantity"], r["note"], [h["op"] for h in r["_history"]]), ("2000", "new", ["add", "change"]))
    equal("change of the unknown", first_code(g.sealed("change", {"data": [entry(1, recordID="0" * 16 + "A")]})[1]), "400110")
    equal("change of another's", first_code(g.sealed("change", {"data": [entry(5, recordID=twin)]})[1]), "400112")
    status, a = g.sealed("invalidate", {"data": [{"requestID": "1", "recordID": twin}]})
    equal("invalidate", (status, a["data"][0]["subFlowStatus"], a["data"][0]["ownRef"]), (200, "20", "ref-1"))
    equal("invalidate twice", first_code(g.sealed("invalidate", {"data": [{"requestID": "1", "recordID": twin}]})[1]), "400111")
    s = g.stats()
    equal("stats", (s["changed"], s["invalidated"], s["out_of_order"], s["duplicates"]), (1, 1, 2, 0))
    a = g.sealed("add", None, text='{"data":[{"requestID":"9","requestID":"8","ipoID":"1234","ownRef":"first","ownRef":"second","big":123456789012345678901234567890,"appQuantity":"1","idList":[]}]}')[1]
    equal("first of a repeated field", (a["data"][0]["requestID"], a["data"][0]["ownRef"]), (9, "first"))
    g.admin("POST", "/config", {"rejectOwnRefs": ["ref-77"]})
    equal("rejectOwnRefs", first_code(g.sealed("add", {"data": [entry(77)]})[1]), "400120")
    g.admin("POST", "/config", {"rejectOwnRefs": []})


def queries(g):
    g.admin("POST", "/reset")
    a = g.sealed("add", {"data": [entry(i) for i in range(1, 1001)]})[1]
    ids = [d["recordID"] for d in a["data"]]
    g.sealed("invalidate", {"data": [{"requestID": str(i), "recordID": r} for i, r in enumerate(ids[:250])]})
    seen, cursor, pages = [], "0", 0
    while True:
        a = g.sealed("query", query(ipoID="1234", size=300, nextCursor=cursor))[1]
        seen += a["data"]
        cursor, pages = a["nextCursor"], pages + 1
        if cursor == "0":
            break
    equal("paging", ([r["recordID"] for r in seen], pages, a["totalSize"]), (ids, 4, 1000))
    check("personal fields are sealed", b"%enc_%" in g.body and "陳".encode() not in g.body)
    equal("and decrypt", seen[999]["idList"], entry(1000)["idList"])
    equal("exact pages", g.sealed("query", query(ipoID="1234", size=1000))[1]["nextCursor"], "0")
    equal("by status", g.sealed("query", query(ipoID="1234", subFlowStatus="20", size=1000))[1]["totalSize"], 250)
    a = g.sealed("query", query(recordID=[ids[5], ids[3], ids[3], "x"]))[1]
    equal("by record IDs", [r["recordID"] for r in a["data"]], [ids[3], ids[5]])
    equal("other IPO", g.sealed("query", query(ipoID="1235"))[1]["data"], [])
    for name, q, code in [("size 0", query(ipoID="1234", size=0), "401900"), ("size 1001", query(ipoID="1234", size=1001), "401900"),
                          ("size text", query(ipoID="1234", size="x"), "401900"), ("nothing", query(), "400902"),
                          ("no cursor", {"data": {"ipoID": "1234"}}, "400905"), ("1001 IDs", query(recordID=["x"] * 1001), "400903"),
                          ("status", query(ipoID="1234", subFlowStatus="x"), "400904")]:
        equal("query refused: " + name, g.sealed("query", q)[1]["code"], code)
    g.admin("POST", "/config", {"maxPageSize": 10})
    equal("maxPageSize", len(g.sealed("query", query(ipoID="1234"))[1]["data"]), 10)
    g.admin("POST", "/config", {"maxPageSize": 1000})
    g.admin("POST", "/config", {"forgetFields": True})
    brief = g.sealed("add", {"data": [entry(1, ownRef="brief")]})[1]["data"][0]["recordID"]
    equal("forgetFields", sorted([x for x in g.admin("GET", "/dump") if x["recordID"] == brief][0]), ["_history", "ipoID", "ownRef", "recordID", "subFlowStatus"])
    g.admin("DELETE", "/records?recordID=" + brief)
    g.admin("POST", "/config", {"forgetFields": False})


def others(g):
    status, a = g.get("/api/ipos/list/v1?size=5&nextCursor=0")
    equal("ipos", (status, len(a["data"]), a["nextCursor"], sorted(a["data"][0])), (200, 5, "5", ["ipoID", "isin", "status", "stkCode"]))
    equal("next ipos", (lambda a: (len(a["data"]), a["nextCursor"]))(g.get("/api/ipos/list/v1?size=5&nextCursor=5")[1]), (3, "0"))
    g.admin("POST", "/ipos", [{"ipoID": "77", "stkCode": "00077", "isin": "X", "status": "25", "refdata": {"odd": [1]}}, {"ipoID": "1234", "status": "45"}])
    equal("refdata", g.get("/api/ipos/refdata/v1?ipoID=77")[1]["data"].get("odd"), [1])
    equal("IPO closed", first_code(g.sealed("add", {"data": [entry(1)]})[1]), "400102")
    g.admin("POST", "/ipos", [{"ipoID": "1234", "status": "25"}])

    def fund(endpoint, body):
        status, b, _ = g.raw("POST", "/api/eipo/funding/%s/v1" % endpoint, json.dumps(body), g.headers())
        return json.loads(b)
    rows = fund("query", {"data": {"ipoID": "1234"}, "size": 100, "nextCursor": "0"})["data"]
    equal("funding", (len(rows), rows[0]["preFundingStatus"], len(rows[0]["transactionRef"])), (1, "10", 13))
    ref = rows[0]["transactionRef"]
    confirm = lambda r, s: (lambda d: (d["preFundingStatus"], d["exception"][0]["recordErrorCode"] if d["exception"] else None))(
        fund("confirm", {"data": [{"transactionRef": r, "preFundingStatus": s}]})["data"][0])
    equal("confirm", confirm(ref, "20"), ("20", None))
    equal("confirm again", confirm(ref, "20"), ("20", None))
    equal("contradict", confirm(ref, "30"), ("20", "400132"))
    equal("unknown transaction", confirm("9" * 13, "20"), (None, "400131"))
    equal("funding status", confirm(ref, "40"), ("20", "400133"))
    g.admin("POST", "/funding", [{"transactionRef": "7" * 13, "ipoID": "77", "preFundingStatus": "10"}])
    equal("planted funding", confirm("7" * 13, "30"), ("30", None))
    g.admin("POST", "/reset")
    equal("load array", g.admin("POST", "/records", [{"ipoID": "1234", "ownRef": "a", "x": 1}, {"ipoID": "1234", "ownRef": "a", "recordID": "R1"}])["loaded"], 2)
    equal("load lines", g.admin("POST", "/records", '{"ipoID":"1234","ownRef":"b"}\n{"ipoID":"77","ownRef":"c","subFlowStatus":"20"}\n')["loaded"], 2)
    s = g.stats()
    equal("planted", (s["records"], s["active"], s["duplicates"]), (4, 3, 1))
    equal("dump filters", [len(g.admin("GET", "/dump" + f)) for f in ("", "?ipoID=1234", "?active=1", "?ipoID=77&active=1")], [4, 3, 3, 0])
    equal("patch", g.admin("PATCH", "/records?recordID=R1", {"ownRef": "z", "y": [2], "ipoID": "77", "recordID": "R2", "subFlowStatus": "20"}), {"altered": 1})
    r = [x for x in g.admin("GET", "/dump") if x["recordID"] == "R2"][0]
    equal("patched", (r["ownRef"], r["y"], r["ipoID"], r["subFlowStatus"]), ("z", [2], "77", "20"))
    s = g.stats()
    equal("counts after patch", (s["records"], s["active"], s["duplicates"]), (4, 2, 0))
    equal("patched row is found", [x["recordID"] for x in g.sealed("query", query(ipoID="77", subFlowStatus="20"))[1]["data"]],
          ["R2", [x for x in g.admin("GET", "/dump") if x["ownRef"] == "c"][0]["recordID"]])
    equal("delete", g.admin("DELETE", "/records?ownRef=a"), {"removed": 1})
    equal("deleted", g.sealed("query", query(ipoID="1234"))[1]["totalSize"], 1)
    check("bad admin input", all("error" in x for x in (g.admin("POST", "/config", {"nonsense": 1}), g.admin("POST", "/faults", [{"endpoint": "*", "action": "?"}]),
          g.admin("POST", "/ipos", "{"), g.admin("GET", "/nothing"), g.admin("PUT", "/reset"), g.admin("POST", "/records", "x"))))


def faults(g):
    def lost(endpoint, payload, timeout=5, **arguments):
        try:
            g.sealed(endpoint, payload, timeout=timeout, fresh=True, **arguments)
            return None
        except Exception as e:
            return type(e).__name__

    def count():
        return g.stats()["records"]

    def try_add(n, **arguments):
        try:
            return g.sealed("add", {"data": [entry(n)]}, fresh=True, **arguments)
        except Exception as e:
            return type(e).__name__, {}

    g.admin("POST", "/reset")
    g.plant("subscriptions/add", "drop-before")
    check("drop-before loses the answer", lost("add", {"data": [entry(1)]}) is not None)
    equal("... and did nothing", count(), 0)
    g.plant("subscriptions/*", "drop-after", skip=1)
    equal("skip lets one pass", try_add(1)[0], 200)
    rid = uuid.uuid4().hex
    check("drop-after loses the answer", lost("add", {"data": [entry(2)]}, request_id=rid) is not None)
    equal("... and was processed", count(), 2)
    equal("... its ID is used up", g.sealed("add", {"data": [entry(2)]}, request_id=rid)[1]["code"], "411002")
    g.plant("*", "hang-before", ms=300)
    began = time.time()
    check("hang-before", lost("add", {"data": [entry(3)]}) is not None and time.time() - began >= 0.3)
    g.plant("subscriptions/add", "hang-after", ms=300)
    check("hang-after", lost("add", {"data": [entry(3)]}) is not None)
    equal("hang-after processed", count(), 3)
    g.plant("subscriptions/add", "status-before", status=503, retryAfter=7)
    g.raw("GET", "/api/crypto/meta", None, g.headers(), fresh=True)
    try:
        g.sealed("add", {"data": [entry(4)]})
    except json.JSONDecodeError:
        pass
    equal("status-before", (g.response.status, g.response.getheader("Retry-After"), count()), (503, "7", 3))
    g.plant("subscriptions/add", "status-after", status=500, body={"oops": 1})
    equal("status-after", (try_add(4), count()), ((500, {"oops": 1}), 4))
    g.plant("subscriptions/add", "code-before", code="411002", status=400)
    s, a = try_add(5)
    equal("code-before", (s, a["code"], count()), (400, "411002", 4))
    g.plant("subscriptions/add", "code-after", code="411002")
    s, a = try_add(5)
    equal("code-after", (s, a["code"], count()), (200, "411002", 5))
    for n, action in enumerate(("truncate", "garbage", "invalid-utf8"), 6):
        g.plant("subscriptions/add", action)
        check(action, lost("add", {"data": [entry(n)]}) in ("IncompleteRead", "JSONDecodeError", "UnicodeDecodeError"))
        equal(action + " processed", count(), n)
    g.plant("subscriptions/add", "wrong-shape")
    equal("wrong-shape", try_add(9)[1].get("timestamp"), 12)
    g.plant("subscriptions/add", "trickle", ms=1)
    began = time.time()
    s, a = try_add(10)
    check("trickle", s == 200 and time.time() - began > 0.1)
    g.plant("subscriptions/add", "delay", ms=200)
    began = time.time()
    s, a = try_add(11)
    check("delay", s == 200 and time.time() - began > 0.2)
    g.plant("subscriptions/add", "reject-entries", n=2, code="555", message="no")
    a = g.sealed("add", {"data": [entry(i) for i in range(20, 25)]}, fresh=True)[1]
    equal("reject-entries n", [len(d["exception"]) for d in a["data"]], [1, 1, 0, 0, 0])
    g.plant("subscriptions/add", "reject-entries", ownRefs=["ref-31"], code="555", status=400)
    s, a = g.sealed("add", {"data": [entry(i) for i in range(30, 33)]})
    equal("reject-entries ownRefs", (s, [len(d["exception"]) for d in a["data"]]), (400, [0, 1, 0]))
    g.plant("subscriptions/add", "drop-entries", n=1)
    equal("drop-entries", [d["requestID"] for d in g.sealed("add", {"data": [entry(40), entry(41)]})[1]["data"]], [41])
    g.plant("subscriptions/add", "extra-entries", n=2)
    equal("extra-entries", len(g.sealed("add", {"data": [entry(42)]})[1]["data"]), 3)
    g.plant("subscriptions/add", "reorder")
    equal("reorder", [d["requestID"] for d in g.sealed("add", {"data": [entry(43), entry(44)]})[1]["data"]], [44, 43])
    g.plant("subscriptions/add", "request-id-string")
    equal("request-id-string", g.sealed("add", {"data": [entry(45)]})[1]["data"][0]["requestID"], "45")
    g.plant("subscriptions/add", "big-record-id")
    equal("big-record-id", len(g.sealed("add", {"data": [entry(46)]})[1]["data"][0]["recordID"]), 1048576)
    g.plant("subscriptions/query", "tamper")
    equal("tamper", g.sealed("query", query(ipoID="1234"))[1]["data"][0]["idList"][0]["idType"], "TAMPERED")
    g.plant("subscriptions/query", "bad-prefix")
    check("bad-prefix", g.sealed("query", query(ipoID="1234"))[1]["data"][0]["idList"][0]["idType"].startswith("%enc-%"))
    g.plant("subscriptions/query", "truncate-ciphertext")
    check("truncate-ciphertext", lost("query", query(ipoID="1234")) is not None or b'"%enc_%AAAA' not in g.body and
          re.search(rb'"%enc_%[A-Za-z0-9+/]{20}"', g.body))
    g.plant("crypto/meta", "redirect", location="https://elsewhere.example/")
    status, _, r = g.raw("GET", "/api/crypto/meta", None, g.headers())
    equal("redirect", (status, r.getheader("Location")), (302, "https://elsewhere.example/"))
    g.plant("crypto/meta", "oversize", bytes=3000000)
    check("oversize", len(g.raw("GET", "/api/crypto/meta", None, g.headers())[1]) > 3000000)
    g.plant("token", "status-before", status=503)
    equal("token fault", g.raw("POST", "/openam/oauth2/eu/access_token", "", {})[0], 503)
    g.plant("crypto/meta", "status-before", status=500, count=-1, probability=0.5)
    hits = sum(g.raw("GET", "/api/crypto/meta", None, g.headers())[0] == 500 for _ in range(200))
    check("probability", 50 < hits < 150, hits)
    equal("hit count", (g.admin("GET", "/faults")[0]["hits"], g.admin("GET", "/faults")[0]["left"]), (hits, -1))
    g.plant("subscriptions/add", "drop-after")
    equal("a refused call uses no fault", g.sealed("add", {"data": [entry(1)]}, X_FINI_SIGNATURE="c" * 64)[1]["code"], "411008")
    equal("... it is still there", g.admin("GET", "/faults")[0]["left"], 1)
    g.admin("DELETE", "/faults")
    g.plant("subscriptions/add", "hang-after", ms=600000)
    t = threading.Thread(target=lambda: lost("add", {"data": [entry(99)]}, timeout=1))
    t.start()
    t.join()


def concurrency(g):
    """Eight connections at once, and eight copies of one request: one of them counts."""
    g.admin("POST", "/reset")
    answers, rid = [], uuid.uuid4().hex

    def work(k):
        c = clone(g)
        for i in range(10):
            a = c.sealed("add", {"data": [entry(n, ownRef="%d-%d-%d" % (k, i, n)) for n in range(1, 21)]})[1]
            answers.append(sum(not d["exception"] for d in a["data"]))
            c.sealed("change", {"data": [entry(1, ownRef=None, recordID=a["data"][0]["recordID"], appQuantity="7")]})
            c.sealed("query", query(ipoID="1234", size=50))
            if k == 0:
                c.admin("GET", "/dump?active=1")
                c.admin("POST", "/faults", [{"endpoint": "ipos/list", "action": "delay"}])
                c.admin("GET", "/stats")
        answers.append(c.sealed("add", {"data": [entry(1, ownRef="raced")]}, request_id=rid)[1]["code"])
    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    codes = [a for a in answers if isinstance(a, str)]
    equal("eight connections", sum(a for a in answers if isinstance(a, int)), 1600)
    equal("one request ID, eight copies", sorted(codes), ["0"] + ["411002"] * 7)
    s = g.stats()
    equal("their records", (s["records"], s["changed"], s["duplicates"], s["repeated_request_ids"]), (1601, 80, 0, 7))
    g.admin("DELETE", "/faults")


KNOWN_BODY = ('{"data":[{"requestID":"1","ipoID":"1234","idList":[{"idType":"%enc_%eapFkonN3fzIDdSEkiD9EQg=",'
              '"idCountryJurisdiction":"%enc_%ACzvoa5ZmoiXFScyhNbRKtxUgw==","idNum":"%enc_%BVeZ9hPEphW7EeSiE2UMP6bnM/QbklYusbM=",'
              '"fullNameEng":"%enc_%CQnGpkKS/FHrGOMgkJROsmXZe+kEXEZ61hEcNn/P","fullNameChi":"%enc_%rtYCIbx0dZksk9K1QLpNT3zAjRi2YaZuWQ=="}],'
              '"appQuantity":"1000","firmID":"00000","ownRef":"f992b5c2-fd16-4e57-8387-738cb7aa75fb"}]}')


def known_answer(folder):
    """The published request: its signature is right, its ciphertexts are not of its key."""
    g = Gateway(folder)
    g.admin("POST", "/config", {"clockSkew": 1672531199012 - int(time.time() * 1000), "tokenLifetime": 600})
    skewed = int(1672531199 + 60)
    g.get_token(agent={"exp": skewed}, machine={"exp": skewed})
    g.refresh()
    published = "1e53e99379e78f6c37b9f7a3803412c2a54dde050494e99420d781f3ae8861d7"
    wrapped = base64.b64encode(b"YN5i4GiqgMKcOgr4oDDpIntc9866elbh") + b"#" + base64.b64encode(b"0" * 12)
    arguments = dict(text=KNOWN_BODY, wrapped=wrapped, request_id="cbbfb2afa2094b14a7c6b66a0a399034", X_FINI_TIMESTAMP="1672531199012")
    equal("published signature is accepted", g.sealed("add", None, X_FINI_SIGNATURE=published, **arguments)[1]["code"], "411011")
    equal("another is not", g.sealed("add", None, X_FINI_SIGNATURE="0" + published[1:], **arguments)[1]["code"], "411008")
    g.stop()


def throttle(folder):
    g = Gateway(folder, "--rate-limit", "20", "--rate-window", "0.8", "--token-lifetime", "300")
    g.get_token()
    codes = [g.get("/api/crypto/meta")[0] for _ in range(25)]
    equal("throttle", codes, [200] * 20 + [429] * 5)
    status, body, r = g.raw("GET", "/api/crypto/meta", None, g.headers())
    equal("Retry-After", (status, r.getheader("Retry-After")), (429, "1"))
    deadline = time.time() + 5
    while g.get("/api/crypto/meta")[0] == 429 and time.time() < deadline:
        time.sleep(0.02)
    s = g.stats()
    check("window slides", time.time() < deadline)
    check("peak", s["peak_in_window"] >= 26, s["peak_in_window"])
    check("refusals counted", s["refusals"]["429"] >= 6 and len(g.admin("GET", "/refusals")) == s["refusals"]["429"])
    equal("ends on SIGTERM", g.stop(), 0)


def startup(folder):
    def fails(name, *options):
        p = subprocess.run([GATEWAY] + list(options), capture_output=True, text=True, timeout=20)
        check("refuses to start: " + name, p.returncode in (1, 2) and p.stdout == "" and p.stderr != "", p)
    base = ["--self-signed", folder + "/x.pem", "--agent-issuer", ISSUER, "--agent-subject", SUBJECT, "--machine-id", MACHINE]
    fails("no option")
    fails("shared key", *base, "--agent-jwks", folder + "/agent.jwks", "--machine-jwks", folder + "/agent.jwks")
    fails("no key file", *base, "--agent-jwks", folder + "/agent.jwks", "--machine-jwks", folder + "/nothing")
    far = folder + "/far.jwks"
    jwks(far, rsa_key(folder + "/far.pem"), int(time.time()) + 370 * 86400)
    fails("key for more than a year", *base, "--agent-jwks", far, "--machine-jwks", folder + "/machine.jwks")
    equal("--help", subprocess.run([GATEWAY, "--help"], capture_output=True).returncode, 0)


def client_certificates(folder):
    def openssl(*a):
        subprocess.run(["openssl"] + list(a), check=True, capture_output=True)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder + "/cakey.pem", "-out", folder + "/clientca.pem", "-subj", "/CN=ca", "-days", "2")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", folder + "/client.key", "-out", folder + "/client.csr", "-subj", "/CN=client")
    openssl("x509", "-req", "-in", folder + "/client.csr", "-CA", folder + "/clientca.pem", "-CAkey", folder + "/cakey.pem", "-CAcreateserial", "-out", folder + "/client.pem", "-days", "2")
    g = Gateway(folder, "--client-ca", folder + "/clientca.pem")
    try:
        g.get_token()
        check("no client certificate", False, "was let in")
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        check("no client certificate", True)
    g.connection = None
    g.ssl.load_cert_chain(folder + "/client.pem", folder + "/client.key")
    equal("client certificate", g.get_token()[0], 200)
    g.stop()


def main():
    with tempfile.TemporaryDirectory() as folder:
        for profile in ("agent", "machine"):
            jwks(folder + "/%s.jwks" % profile, rsa_key(folder + "/%s.pem" % profile))
        startup(folder)
        g = Gateway(folder, "--rate-limit", "0")
        try:
            tokens(g)
            g.get_token()
            g.refresh()
            access(g)
            for part in (envelope, subscriptions, queries, others, concurrency, faults):
                part(g)
        finally:
            began = time.time()
            equal("ends on SIGTERM, hanging or not", (g.stop(), time.time() - began < 5), (0, True))
        known_answer(folder)
        throttle(folder)
        client_certificates(folder)
        with open(folder + "/log") as f:
            log = f.read()
        check("log holds no personal data", "CHAN" not in log and "A123456" not in log and "ref-" not in log)
    print("%d failed" % failures if failures else "all passed")
    return 1 if failures else 0


sys.exit(main())
