"""The OpenVPN server: its configuration, its process, its health."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from types import FrameType
from typing import Any

from trilake_vpn import pki, sessions

# Without a valid revocation list nobody can connect: it is renewed when less than half of its time is left.
CRL_LEFT_DAYS = 15
# Seconds between two checks for sessions to end. If a profile is revoked during a handshake, its session still starts,
# and continues until the next check.
WATCH_SECONDS = 2
# If a renewal fails, it is tried again after this many seconds.
RENEW_SECONDS = 60


def configuration() -> str:
    """OpenVPN's configuration. The server drops its rights after it has read the keys, so it needs persist-*."""
    network = pki.vpn_network()
    routes = "".join(f'push "route {os.environ[f"VPS_{n}_ADDRESS"]} 255.255.255.255"\n' for n in (1, 2, 3))
    return f"""port 1194
proto udp4
dev tun0
dev-type tun
disable-dco
mode server
tls-server
topology subnet
ifconfig {network.network_address + 1} {network.netmask}
push "topology subnet"
push "route-gateway {network.network_address + 1}"
{routes}ca {pki.CURRENT}/ca.crt
cert {pki.CURRENT}/issued/{pki.SERVER}.crt
key {pki.CURRENT}/private/{pki.SERVER}.key
tls-crypt-v2 {pki.CURRENT}/private/tls-crypt-v2.key
dh none
crl-verify {pki.CURRENT}/crl.pem
client-config-dir {pki.CURRENT}/ccd
ccd-exclusive
remote-cert-tls client
tls-version-min 1.3
tls-ciphersuites TLS_AES_256_GCM_SHA384
data-ciphers AES-256-GCM
keepalive 10 60
push "ping 10"
push "ping-restart 60"
explicit-exit-notify 1
persist-key
persist-tun
user nobody
group nogroup
management {sessions.MANAGEMENT} unix
verb 2
"""


def serve() -> int:
    """Run OpenVPN until it ends or gets a signal.

    Meanwhile end the sessions of profiles that are not valid, and renew the revocation list when it is due.
    """
    authority = pki.init()
    label = "new" if authority["made"] else "not changed"
    print(f"vpn: certificate authority {authority['fingerprint']}, {label}", flush=True)
    sessions.RUN.mkdir(parents=True, exist_ok=True)
    file = sessions.RUN / "server.conf"
    file.write_text(configuration())
    sessions.MANAGEMENT.unlink(missing_ok=True)
    server = subprocess.Popen(["openvpn", "--config", str(file)])
    ending = False

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    looked_at, look_again = "", 0.0
    while True:
        try:
            return server.wait(timeout=WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        try:
            if ending:  # by a command: OpenVPN runs as nobody now, and this process cannot send it signals
                with sessions.management() as ask:
                    ask("signal SIGTERM")
                continue
            for cn in sessions.cut():
                print(f"vpn: {cn} is not valid. Its session was ended.", flush=True)
            if (name := pki.CURRENT.resolve().name) != looked_at or time.monotonic() > look_again:
                looked_at, look_again = name, time.monotonic() + RENEW_SECONDS
                pki.tidy()
                with pki.current() as state:
                    left = state.crl_expires() - pki.now()
                if left < timedelta(days=CRL_LEFT_DAYS):
                    print(f"vpn: revocation list renewed, until {pki.renew_crl()['crl_expires_at']}", flush=True)
        except (OSError, pki.VpnError) as e:  # the server keeps running, and the next round tries again
            print(f"vpn: {e}", file=sys.stderr, flush=True)


def check() -> dict[str, Any]:
    """Check that the server accepts connections and that its revocation list is valid.

    :raises VpnError: it accepts no connections, or the list has expired.
    """
    with sessions.management() as ask:
        answer = next(iter(ask("state")), "no answer")
    if ",CONNECTED," not in answer:
        raise pki.VpnError(f"OpenVPN is not ready: {answer}")
    with pki.current() as state:
        expires = state.crl_expires()
    if expires <= pki.now():
        raise pki.VpnError(
            "The revocation list has expired and nobody can connect. Run `trilake vpn renew-crl` and read the log."
        )
    return {"crl_expires_at": expires.isoformat()}
