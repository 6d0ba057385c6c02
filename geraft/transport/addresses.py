"""host:port, as users write it."""

from __future__ import annotations

import errno
import socket

from geraft.errors import AddressInUse, ConfigError


def split(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[host]:port". Raises ConfigError for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f'an address is "host:port" with a port up to 65535, not {address!r}')
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare is host) or "/" in bare or any(character.isspace() for character in bare):
        raise ConfigError(f'an address is "host:port", with an IPv6 host in brackets, not {address!r}')
    return bare, int(port)


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_free(address: str) -> None:
    """Raise AddressInUse if any socket listens there already, ConfigError if it is no address of this machine.

    gRPC would be content with one free address of all those that a name has, and tells no reasons.
    """
    host, port = split(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"can't listen on {address}: {error}") from None
    for family, kind, protocol, _, where in found:
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:
            continue  # a family that this machine doesn't have
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(where)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUse(
                        f"{address} is in use: another process or another node listens there; stop it or choose another"
                    ) from None
                if error.errno == errno.EADDRNOTAVAIL and family == socket.AF_INET6:
                    continue  # "localhost" names ::1 also where IPv6 is off
                raise ConfigError(f"can't listen on {address}: {error}") from None
