"""Notifications about the sessions of a pipeline: a command, a webhook, e-mail, Amazon SNS.

They are sent in threads, and a notification that cannot be sent is said in one line: it never stops
anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import smtplib
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any, Literal

from jaxrl.errors import UserError, tell
from jaxrl.options import option

Event = Literal[
    "session_completed", "session_failed", "pipeline_completed", "pipeline_failed", "stopped"
]
TIMEOUT = 20.0  # seconds for one notification
PASSWORD = "JAXRL_SMTP_PASSWORD"


@dataclasses.dataclass(frozen=True)
class EmailConfig:
    """E-mail by SMTP; a password is read from the environment variable JAXRL_SMTP_PASSWORD."""

    to: tuple[str, ...] = option((), "addresses that the e-mail goes to; none: no e-mail")
    sender: str | None = option(None, "address of the sender; none: the first of `to`")
    host: str = option("localhost", "SMTP server")
    port: int = option(25, "its port", minimum=1, maximum=65535)
    encryption: Literal["none", "starttls", "tls"] = option("none", "encryption of the connection")
    user: str | None = option(None, "name to log in with; none: no login")


@dataclasses.dataclass(frozen=True)
class NotificationsConfig:
    """Who is told about the end of sessions and of the pipeline."""

    events: tuple[Event, ...] = option(
        ("session_completed", "session_failed", "pipeline_completed", "pipeline_failed", "stopped"),
        "events that are told",
    )
    command: str | None = option(
        None,
        "shell command; JAXRL_EVENT and JAXRL_TEXT are in its environment, and all facts as JSON in"
        " its input",
    )
    webhook: str | None = option(
        None,
        "address that all facts are posted to as JSON (`text` is one line, as Slack wants it); "
        "$NAME: the content of this environment variable",
    )
    email: EmailConfig = option(EmailConfig(), "e-mail")
    sns: str | None = option(None, "ARN of an Amazon SNS topic (extra aws)")


def check(config: NotificationsConfig) -> None:
    """Checks what can be checked without sending anything.

    Raises:
      UserError: a variable or a library is missing, or an address cannot be one.
    """
    if config.webhook is not None:
        _webhook(config.webhook)
    if config.email.user is not None and PASSWORD not in os.environ:
        raise UserError(f"notifications.email.user: set the password in the variable {PASSWORD}")
    if config.sns is not None:
        _sns(config.sns)


@contextlib.contextmanager
def notifier(config: NotificationsConfig) -> Iterator[Callable[..., None]]:
    """Context manager that gives a function (event, text, **facts), which tells about an event; at
    the end it waits for notifications that are on their way."""
    threads: list[threading.Thread] = []

    def tell(event: Event, text: str, **facts: Any) -> None:
        if event not in config.events:
            return
        content = {"event": event, "text": text, **facts}
        for name, send in _channels(config).items():
            thread = threading.Thread(target=_try, args=(name, send, content), daemon=True)
            thread.start()
            threads.append(thread)

    try:
        yield tell
    finally:
        for thread in threads:
            thread.join(TIMEOUT + 5)


def _channels(config: NotificationsConfig) -> dict[str, Callable[[dict[str, Any]], None]]:
    """Functions that send a notification, by their names."""
    channels: dict[str, Callable[[dict[str, Any]], None]] = {}
    if config.command is not None:
        channels["command"] = lambda content: _run(str(config.command), content)
    if config.webhook is not None:
        channels["webhook"] = lambda content: _post(str(config.webhook), content)
    if config.email.to:
        channels["email"] = lambda content: _mail(config.email, content)
    if config.sns is not None:
        channels["sns"] = lambda content: _publish(str(config.sns), content)
    return channels


def _try(name: str, send: Callable[[dict[str, Any]], None], content: dict[str, Any]) -> None:
    try:
        send(content)
    except Exception as error:  # of many kinds, from the network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        tell(f"notifications.{name}: not sent: {reason}")


def _run(command: str, content: dict[str, Any]) -> None:
    variables = {"JAXRL_EVENT": content["event"], "JAXRL_TEXT": content["text"]}
    result = subprocess.run(
        command,
        shell=True,
        input=json.dumps(content),
        text=True,
        capture_output=True,
        timeout=TIMEOUT,
        env=os.environ | variables,
    )
    if result.returncode:
        raise OSError(f"exit status {result.returncode} {result.stderr.strip()}")


def _webhook(address: str) -> str:
    if address.startswith("$"):
        name = address[1:]
        if name not in os.environ:
            raise UserError(f"notifications.webhook: the environment has no variable {name}")
        address = os.environ[name]
    if not address.startswith(("http://", "https://")):
        raise UserError("notifications.webhook: expected an address that begins with https://")
    return address


def _post(address: str, content: dict[str, Any]) -> None:
    request = urllib.request.Request(
        _webhook(address),
        data=json.dumps(content).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "jaxrl"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        answer.read()


def _mail(config: EmailConfig, content: dict[str, Any]) -> None:
    message = EmailMessage()
    message["Subject"] = content["text"]
    message["From"] = config.sender or config.to[0]
    message["To"] = ", ".join(config.to)
    message.set_content(json.dumps(content, indent=1))
    kind = smtplib.SMTP_SSL if config.encryption == "tls" else smtplib.SMTP
    with kind(config.host, config.port, timeout=TIMEOUT) as server:
        if config.encryption == "starttls":
            server.starttls()
        if config.user is not None:
            server.login(config.user, os.environ[PASSWORD])
        server.send_message(message)


def _sns(topic: str) -> Any:
    try:
        import boto3
    except ImportError as error:
        raise UserError(
            "notifications.sns: needs boto3, which is not installed; run `pip install 'jaxrl[aws]'`"
        ) from error
    parts = topic.split(":")
    if len(parts) != 6 or parts[:3:2] != ["arn", "sns"]:
        raise UserError(f"notifications.sns: got {topic!r}, expected arn:aws:sns:REGION:ID:NAME")
    return boto3.client("sns", region_name=parts[3])


def _publish(topic: str, content: dict[str, Any]) -> None:
    _sns(topic).publish(
        TopicArn=topic, Subject=content["text"][:100], Message=json.dumps(content, indent=1)
    )
