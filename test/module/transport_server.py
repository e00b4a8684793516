#!/usr/bin/env python3
#
# transport_server.py DIR LOG: a web server that misbehaves on request, for test/t/002_transport.pl.
#
# Prints one line of JSON with its ports, then serves on 127.0.0.1 until its standard input ends. DIR holds
# NAME.crt and NAME.key for server, expired, other (another host's) and stranger (another authority's), and
# ca.crt. LOG gets one line of JSON for each event: accept, request (with connection, path, body length),
# connect (at the proxy), close.

import json, os, socket, ssl, sys, threading, time, warnings
from urllib.parse import urlparse, parse_qs

warnings.simplefilter('ignore')
folder, log_name = sys.argv[1:3]
lock = threading.Lock()
log = open(log_name, 'a', buffering=1)
connections = 0


def note(event, **facts):
    with lock:
        log.write(json.dumps(dict(event=event, at=time.time(), **facts)) + '\n')


def context(name, tls11=False, client_ca=None):
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.load_cert_chain(f'{folder}/{name}.crt', f'{folder}/{name}.key')
    if tls11:
        ctx.set_ciphers('ALL:@SECLEVEL=0')
        ctx.minimum_version = ssl.TLSVersion.TLSv1_1
        ctx.maximum_version = ssl.TLSVersion.TLSv1_1
    if client_ca:
        ctx.verify_mode = ssl.CERT_REQUIRED
        ctx.load_verify_locations(client_ca)
    return ctx


def listen(serve):
    listener = socket.create_server(('127.0.0.1', 0), backlog=64)

    def accept():
        global connections
        while True:
            sock, _ = listener.accept()
            with lock:
                connections += 1
                number = connections
            threading.Thread(target=guarded, args=(serve, sock, number), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def guarded(serve, sock, number):
    note('accept', connection=number)
    try:
        serve(sock, number)
    except (OSError, EOFError) as problem:
        note('error', connection=number, what=type(problem).__name__)
    finally:
        sock.close()
        note('close', connection=number)


def https(ctx):
    def serve(sock, number):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = ctx.wrap_socket(sock, server_side=True, suppress_ragged_eofs=True)
        try:
            while one_request(tls, number):
                pass
        finally:
            tls.close()
    return serve


def one_request(tls, number):
    head = b''
    while b'\r\n\r\n' not in head:
        more = tls.recv(65536)
        if not more:
            return False
        head += more
    head, body = head.split(b'\r\n\r\n', 1)
    lines = head.decode('latin-1').split('\r\n')
    method, target, version = lines[0].split(' ')
    headers = {k.lower(): v.strip() for k, v in (line.split(':', 1) for line in lines[1:])}
    length = int(headers.get('content-length', 0))
    while len(body) < length:
        more = tls.recv(65536)
        if not more:
            raise EOFError
        body += more
    url = urlparse(target)
    args = {k: v[0] for k, v in parse_qs(url.query).items()}
    note('request', connection=number, method=method, path=url.path, body=len(body), version=version, headers=headers)
    return globals()['do_' + url.path.strip('/')](tls, number, args, body)


def answer(tls, status, body, *headers, length=None):
    lines = [f'HTTP/1.1 {status} Whatever', 'Content-Type: application/json',
             f'Content-Length: {len(body) if length is None else length}', *headers]
    tls.sendall('\r\n'.join(lines).encode() + b'\r\n\r\n' + body)


def do_ok(tls, number, args, body):
    answer(tls, 200, json.dumps({'connection': number, 'body': len(body)}).encode())
    return True


def do_redirect(tls, number, args, body):
    answer(tls, 302, b'moved', 'Location: /ok')
    return True


def do_status(tls, number, args, body):
    answer(tls, int(args['status']), b'{}', *([f'Retry-After: {args["after"]}'] if 'after' in args else []))
    return True


def do_big(tls, number, args, body):                # says beforehand how big it is
    answer(tls, 200, b'x' * int(args['n']))
    return True


def do_endless(tls, number, args, body):            # does not
    tls.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
    while True:
        tls.sendall(b'4000\r\n' + b'x' * 0x4000 + b'\r\n')


def do_headers(tls, number, args, body):
    tls.sendall(b'HTTP/1.1 200 OK\r\n')
    while True:
        tls.sendall(b'X-Filler: ' + b'x' * 1000 + b'\r\n')


def do_bomb(tls, number, args, body):               # compressed although nobody asked
    answer(tls, 200, b'\x1f not really', 'Content-Encoding: gzip')
    return True


def do_hang(tls, number, args, body):
    tls.recv(1)                                     # until the client goes
    return False


def do_linger(tls, number, args, body):             # has it closed, and does not answer to that
    answer(tls, 200, b'{}', 'Connection: close')
    while os.read(tls.fileno(), 4096):
        pass
    return False


def do_drop(tls, number, args, body):
    return False


def do_reset(tls, number, args, body):
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\x01\0\0\0\0\0\0\0')
    return False


def do_truncate(tls, number, args, body):
    answer(tls, 200, b'{"half":', length=100)
    return False


def do_garbage(tls, number, args, body):
    tls.sendall(b'this is no HTTP\r\n\r\n')
    return False


def do_slow(tls, number, args, body):
    time.sleep(int(args['ms']) / 1000)
    return do_ok(tls, number, args, body)


def do_leave(tls, number, args, body):              # promises to stay, and goes
    answer(tls, 200, b'{}', 'Connection: keep-alive')
    return False


def do_early(tls, number, args, body):              # a 1xx before the answer
    tls.sendall(b'HTTP/1.1 103 Early Hints\r\nRetry-After: 99\r\n\r\n')
    return do_ok(tls, number, args, body)


def silent(sock, number):                           # accepts, and says nothing
    while sock.recv(4096):
        pass


def plain(sock, number):                            # no TLS
    sock.recv(4096)
    sock.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')


def proxy(sock, number):
    head = b''
    while b'\r\n\r\n' not in head:
        more = sock.recv(4096)
        if not more:
            return
        head += more
    lines = head.decode('latin-1').split('\r\n')
    target = lines[0].split(' ')[1]
    note('connect', connection=number, target=target, head=head.decode('latin-1'))
    if not any(line.lower().startswith('proxy-authorization:') for line in lines):
        sock.sendall(b'HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n')
        return
    host, port = target.split(':')
    other = socket.create_connection((host, int(port)))
    sock.sendall(b'HTTP/1.1 200 Go on\r\nRetry-After: 77\r\n\r\n')

    def pump(a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    thread = threading.Thread(target=pump, args=(other, sock), daemon=True)
    thread.start()
    pump(sock, other)
    thread.join()
    other.close()


ports = {name: listen(https(context(name))) for name in ('server', 'expired', 'other', 'stranger')}
ports['old'] = listen(https(context('server', tls11=True)))
ports['mutual'] = listen(https(context('server', client_ca=f'{folder}/ca.crt')))
ports['silent'] = listen(silent)
ports['plain'] = listen(plain)
ports['proxy'] = listen(proxy)
closed = socket.create_server(('127.0.0.1', 0))
ports['closed'] = closed.getsockname()[1]
closed.close()
print(json.dumps(ports), flush=True)
sys.stdin.read()
