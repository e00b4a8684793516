#!/usr/bin/env python3
#
# hostile_gateway.py DIR: stands between fini and the sandbox, for test/t/100_hostile_gateway.pl.
#
# Speaks TLS to both sides and passes requests on, unless a plan says how it is to be hostile: instead of passing a
# request on, or ("after") once the sandbox has processed it. Prints one line of JSON with its ports: "port" for fini,
# "control" for the test, which sends one JSON object a line and gets one back:
#
#   {"upstream": PORT}                 where the sandbox is
#   {"plan": [{"path":…, "how":…}]}    requests whose target holds "path", the first "count" (-1: all) of them; see how_…
#   {"certificate": NAME, "tls": V}    DIR/NAME.crt and .key for connections from now on, TLS up to version V; the others end
#   {"capture": FILE}                  from now on, every request goes there whole, one JSON object a line: {"target":…,
#                                      "headers":{…}, "body":…, "key":…}. The gateway's public key is exchanged for
#                                      DIR/between.pem's, so that "key" can be what X-FINI-ENCRYPTED-KEY holds
#   {"events": true}                   what has been seen since the last time: [{"connection":…, "target":…,
#                                      "headers":…, "bytes":…}]
#
# Ends when its standard input does.

import base64, http.client, json, os, socket, ssl, subprocess, sys, threading, time, zlib

folder = sys.argv[1]
lock = threading.Lock()
state = {'upstream': 0, 'capture': None, 'plan': [], 'certificate': 'server', 'tls': ''}
events = []
connections = set()
count = 0
hop_by_hop = {'connection', 'transfer-encoding', 'content-length', 'host', 'keep-alive'}


def context():
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.load_cert_chain(f'{folder}/{state["certificate"]}.crt', f'{folder}/{state["certificate"]}.key')
    if state['tls'] == '1.1':
        ctx.set_ciphers('ALL:@SECLEVEL=0')
        ctx.minimum_version = ctx.maximum_version = ssl.TLSVersion.TLSv1_1
    elif state['tls'] == 'null':
        ctx.set_ciphers('NULL:eNULL:@SECLEVEL=0')
        ctx.maximum_version = ssl.TLSVersion.TLSv1_2
    return ctx


def serve(sock):
    global count
    tls = None
    with lock:
        count += 1
        number = count
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = context().wrap_socket(sock, server_side=True)
        with lock:
            connections.add(tls)
        upstream = None
        while True:
            request = read_request(tls, number)
            if request is None:
                break
            plan = take_plan(request['target'])
            answer = None
            if plan is not None:
                plan['request'] = request
            if plan is None or plan.get('after'):
                if upstream is None:
                    ctx = ssl.create_default_context(cafile=f'{folder}/ca.crt')
                    upstream = http.client.HTTPSConnection('localhost', state['upstream'], context=ctx, timeout=60)
                if state['capture']:
                    capture(request)
                answer = forward(upstream, request)
                if state['capture'] and 'crypto/meta' in request['target'] and answer['status'] == 200:
                    exchange_key(answer)
            if plan is None:
                send(tls, answer['status'], answer['body'], *(f'{k}: {v}' for k, v in answer['headers']))
            elif not globals()['how_' + plan['how']](tls, plan, answer):
                break
    except Exception as problem:
        with lock:
            events.append({'error': type(problem).__name__ + ': ' + str(problem)})
    finally:
        with lock:
            connections.discard(tls)
        (tls or sock).close()


def read_request(tls, number):
    head = b''
    while b'\r\n\r\n' not in head:
        more = tls.recv(65536)
        if not more:
            return None
        head += more
    head, body = head.split(b'\r\n\r\n', 1)
    lines = head.decode('latin-1').split('\r\n')
    method, target, _ = lines[0].split(' ')
    headers = [tuple(part.strip() for part in line.split(':', 1)) for line in lines[1:]]
    length = int(dict((k.lower(), v) for k, v in headers).get('content-length', 0))
    while len(body) < length:
        more = tls.recv(65536)
        if not more:
            return None
        body += more
    with lock:
        events.append({'connection': number, 'method': method, 'target': target, 'headers': [k.lower() for k, v in headers], 'bytes': len(body)})
    return {'method': method, 'target': target, 'headers': headers, 'body': body}


def take_plan(target):
    with lock:
        for plan in state['plan']:
            if plan['path'] in target and plan.get('count', 1) != 0:
                plan['count'] = plan.get('count', 1) - 1
                plan['number'] = plan.get('number', 0) + 1
                return dict(plan)
    return None


def forward(upstream, request):
    headers = {k: v for k, v in request['headers'] if k.lower() not in hop_by_hop}
    upstream.request(request['method'], request['target'], request['body'] if request['method'] == 'POST' else None, headers)
    answer = upstream.getresponse()
    return {'status': answer.status, 'body': answer.read(),
            'headers': [(k, v) for k, v in answer.getheaders() if k.lower() not in hop_by_hop]}


# --- between the two, as far as cryptography goes: only for looking at what fini has sent ---

def openssl(*arguments):
    return subprocess.run(['openssl', *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def integers(der):                              # of a SEQUENCE
    numbers, at = [], 0
    _, at, _ = tag(der, 0)
    while at < len(der):
        kind, start, end = tag(der, at)
        if kind == 2:
            numbers.append(int.from_bytes(der[start:end], 'big'))
        at = end
    return numbers


def tag(der, at):                               # its kind, and where its content begins and ends
    kind, length, start = der[at], der[at + 1], at + 2
    if length > 127:
        start += length - 128
        length = int.from_bytes(der[at + 2:start], 'big')
    return kind, start, start + length


def exchange_key(answer):                       # crypto/meta: ours for theirs
    meta = json.loads(answer['body'])
    der = base64.b64decode(meta['data']['publicKey'])
    _, at, _ = tag(der, 0)
    _, _, at = tag(der, at)
    _, start, end = tag(der, at)
    state['theirs'] = integers(der[start + 1:end])
    state['ours'] = integers(openssl('rsa', '-in', f'{folder}/between.pem', '-traditional', '-outform', 'der'))
    meta['data']['publicKey'] = base64.b64encode(openssl('rsa', '-in', f'{folder}/between.pem', '-pubout', '-outform', 'der')).decode()
    answer['body'] = json.dumps(meta).encode()


def rewrap(wrapped):                            # what it holds, and the same for them; PKCS#1 v1.5
    _, n, _, d = state['ours'][:4]
    size = (n.bit_length() + 7) // 8
    block = pow(int.from_bytes(base64.b64decode(wrapped), 'big'), d, n).to_bytes(size, 'big')
    text = block[block.index(b'\0', 2) + 1:]
    n, e = state['theirs']
    size = (n.bit_length() + 7) // 8
    padding = bytes(b or 1 for b in os.urandom(size - 3 - len(text)))
    block = b'\0\2' + padding + b'\0' + text
    return text.decode(), base64.b64encode(pow(int.from_bytes(block, 'big'), e, n).to_bytes(size, 'big')).decode()


def capture(request):
    seen = {'target': request['target'], 'headers': dict(request['headers']), 'body': request['body'].decode('latin-1'), 'key': None}
    for i, (name, value) in enumerate(request['headers']):
        if name.lower() == 'x-fini-encrypted-key' and 'ours' in state:
            seen['key'], value = rewrap(value)
            request['headers'][i] = (name, value)
    with lock, open(state['capture'], 'a') as file:
        file.write(json.dumps(seen) + '\n')


def send(tls, status, body, *headers):
    if isinstance(body, str):
        body = body.encode()
    lines = [f'HTTP/1.1 {status} Whatever', f'Content-Length: {len(body)}', *headers]
    tls.sendall('\r\n'.join(lines).encode() + b'\r\n\r\n' + body)
    return True


# --- how to be hostile: true when the connection may go on ---

def how_answer(tls, plan, answer):              # any body, or one that is repeated to make it long
    body = plan.get('head', '') + plan.get('body', '') * plan.get('times', 1) + plan.get('tail', '')
    return send(tls, plan.get('status', 200), body, 'Content-Type: application/json', *plan.get('headers', []))


def how_with_headers(tls, plan, answer):        # the true answer under other headers
    return send(tls, plan.get('status', answer['status']), answer['body'], *plan['headers'])


def how_replace(tls, plan, answer):             # the true answer with something in it replaced
    return send(tls, answer['status'], answer['body'].decode().replace(plan['from'], plan['to']))


def how_drop(tls, plan, answer):
    return False


def how_loris_head(tls, plan, answer):          # a header that never ends, a byte at a time
    tls.sendall(b'HTTP/1.1 200 OK\r\nX-Slow: ')
    while True:
        tls.sendall(b'x')
        time.sleep(0.1)


def how_loris_body(tls, plan, answer):          # a body that comes a byte at a time
    tls.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n')
    while True:
        tls.sendall(b' ')
        time.sleep(0.1)


def how_endless_body(tls, plan, answer):
    tls.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
    while True:
        tls.sendall(b'10000\r\n' + b' ' * 0x10000 + b'\r\n')


def how_endless_headers(tls, plan, answer):
    tls.sendall(b'HTTP/1.1 200 OK\r\n')
    while True:
        tls.sendall(b'X-Filler: ' + b'x' * 1000 + b'\r\n')


def how_one_header(tls, plan, answer):          # one line of headers that has no end
    tls.sendall(b'HTTP/1.1 200 OK\r\nX-Filler: ')
    while True:
        tls.sendall(b'x' * 65536)


def how_interim(tls, plan, answer):             # 103 for ever
    while True:
        tls.sendall(b'HTTP/1.1 103 Early Hints\r\nLink: <https://localhost:1/>; rel=preload\r\n\r\n' * 100)


def how_trailers(tls, plan, answer):            # a chunked body whose trailers have no end
    tls.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n')
    while True:
        tls.sendall(b'X-Filler: ' + b'x' * 1000 + b'\r\n')


def how_bomb(tls, plan, answer):                # a gigabyte of spaces, compressed as nobody has asked for
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b''.join(packer.compress(b' ' * (1 << 20)) for _ in range(1024)) + packer.flush()
    if plan['encoding'] == 'content':
        return send(tls, 200, body, 'Content-Encoding: gzip', 'Content-Type: application/json')
    tls.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n%x\r\n' % len(body) + body + b'\r\n0\r\n\r\n')
    return False


def how_lengths(tls, plan, answer):             # two lengths, of which one is a lie
    body = answer['body']
    tls.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
    return False


def how_smuggle(tls, plan, answer):             # the answer to a request that has not been made yet
    # two records of TLS that arrive together, so that the second cannot come after the next request
    tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    send(tls, 200, '{"code":"0","data":[]}')
    send(tls, 200, '{"code":"0","data":[{"requestID":"1","recordID":"6666666666666666A"}],"nextCursor":"0"}')
    tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    return True


def how_echo(tls, plan, answer):                # a refusal that quotes whatever was sent
    request = plan['request']
    secret = dict(request['headers']).get('Authorization', '').removeprefix('Bearer ')
    body = request['body'].decode()
    if 'assertion=' in body:
        quoted = body.split('assertion=')[1].split('&')[0] if plan.get('which', 'agent') == 'agent' else body.split('client_assertion=')[1]
        return send(tls, 400, json.dumps({'error': 'invalid_grant', 'error_description': 'not valid: ' + quoted[:plan.get('bytes', 1000)]}))
    sealed = '%enc_%' + body.split('%enc_%')[1].split('"')[0] if '%enc_%' in body else ''
    return send(tls, 400, json.dumps({'code': '400888', 'message': f'not with {secret} {sealed}', 'data': []}))


def how_pages(tls, plan, answer):               # pages without end: new cursors each time, or some that go round
    number = plan['number']
    cursor = number if plan.get('round', 0) == 0 else number % plan['round'] + 1
    return send(tls, 200, json.dumps({'code': '0', 'message': '', 'nextCursor': str(cursor),
                                      'data': plan.get('data', [{'recordID': 'R%d' % number, 'ownRef': 'O%d' % number}])}))


# --- the test's side ---

def control(sock):
    for line in sock.makefile('r'):
        order = json.loads(line)
        result = {}
        with lock:
            if order.pop('events', False):
                result['events'] = events[:]
                events.clear()
            if any(state[what] != order.get(what, state[what]) for what in ('certificate', 'tls')):
                for tls in connections:
                    try:
                        tls.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass                    # it has gone already
            state.update(order)
        sock.sendall((json.dumps(result) + '\n').encode())


def listen(handler):
    listener = socket.create_server(('127.0.0.1', 0), backlog=64)

    def accept():
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=handler, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


print(json.dumps({'port': listen(serve), 'control': listen(control)}), flush=True)
sys.stdin.read()
