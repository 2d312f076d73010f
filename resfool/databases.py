"""Databases that a user names by a URL: what is wrong with it is found out before they are used."""

import socket
import warnings

from resfool.errors import unknown
from resfool.wording import without_password

_SECONDS = 3.0  # that a database has to answer
_KINDS = "sqlite", "postgresql", "mysql", "mariadb", "mssql", "oracle"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
QUOTING = "/ ? # [ ] @ and % in a user or password must be quoted, as %40 for @"


def flaw(url: str) -> str | None:
    """What is wrong with a database's URL, or missing for it here, as the end of a sentence."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        parsed = make_url(url)
        if "@" in (parsed.host or ""):
            return QUOTING
        if parsed.port is not None and not 0 < parsed.port < 65536:
            return f"its port {parsed.port} isn't one of 1 to 65535"
        dialect = parsed.get_dialect()
        dialect.import_dbapi()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when it is opened
            dialect().create_connect_args(parsed)
    except NoSuchModuleError:
        return str(unknown("kind of database", parsed.drivername, _KINDS))
    except ImportError as error:
        return f"it needs the Python module {error.name}, which isn't installed"
    except (ArgumentError, ValueError, TypeError):
        return "it is no database's URL; give such as sqlite:///FILE or postgresql://HOST/NAME"
    return None


def failure(url: str) -> str | None:
    """Why a database on a host can't be reached now, as the end of a sentence."""
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.pool import NullPool

    parsed = make_url(url)
    if not parsed.host:
        return None
    try:
        port = parsed.port or _PORTS.get(parsed.get_backend_name())
        if port and "unix_socket" not in parsed.query:
            # Drivers wait for minutes where nobody answers.
            socket.create_connection((parsed.host, port), _SECONDS).close()
        create_engine(parsed, poolclass=NullPool).connect().close()
    except Exception as error:  # SQLAlchemy's, or whatever a driver raises
        return str(getattr(error, "orig", None) or error).partition("\n")[0]
    return None


def refusal(name: str, url: str, use: str, why: str) -> str:
    """The sentence that refuses an address."""
    return f"{name}={without_password(url)} can't be used for {use}: {why}"
