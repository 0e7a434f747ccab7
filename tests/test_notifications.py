"""Notifications: each kind arrives at a receiver, and none of them stops anything."""

import http.server
import json
import threading
import urllib.parse

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from jaxrl import pipelines, strict_yaml
from jaxrl.errors import UserError
from jaxrl.notifications import EmailConfig, NotificationsConfig, check, notifier
from tests.test_pipeline import SMALL, run
from tests.test_storage import free_port

TOPIC = "arn:aws:sns:eu-west-1:123456789012:topic"


@pytest.fixture
def web():
    """A web server: its address, and a list of (path, body) of what was posted to it."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append((self.path, body))
            self.send_response(500 if "broken" in self.path else 200)
            self.end_headers()
            self.wfile.write(
                b"<PublishResponse xmlns='http://sns.amazonaws.com/doc/2010-03-31/'><PublishResult>"
                b"<MessageId>1</MessageId></PublishResult></PublishResponse>"
            )

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


@pytest.fixture
def post_office():
    """An SMTP server: its port, and a list of the (addresses, text) of its e-mails."""
    received = []

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            received.append((envelope.rcpt_tos, envelope.content.decode()))
            return "250 OK"

    def login(server, session, envelope, mechanism, data):
        return AuthResult(success=data.password == b"letmein")

    port = free_port()
    controller = Controller(
        Handler(), "127.0.0.1", port, authenticator=login, auth_require_tls=False
    )
    controller.start()
    yield port, received
    controller.stop()


def told(config, event="session_failed"):
    with notifier(config) as tell:
        tell(event, "it failed", session="a", means={"return": 1.5})


def test_a_webhook(web, monkeypatch):
    address, received = web
    told(NotificationsConfig(webhook=f"{address}/hook"))
    monkeypatch.setenv("HOOK", f"{address}/secret")
    told(NotificationsConfig(webhook="$HOOK"))
    assert [path for path, _ in received] == ["/hook", "/secret"]
    facts = json.loads(received[0][1])
    assert facts == {
        "event": "session_failed",
        "text": "it failed",
        "session": "a",
        "means": {"return": 1.5},
    }


def test_a_command(tmp_path):
    out = tmp_path / "out"
    told(NotificationsConfig(command=f"(cat; echo; echo $JAXRL_EVENT: $JAXRL_TEXT) > {out}"))
    facts, line = out.read_text().splitlines()
    assert json.loads(facts)["session"] == "a" and line == "session_failed: it failed"


def test_e_mail(post_office, monkeypatch):
    port, received = post_office
    monkeypatch.setenv("JAXRL_SMTP_PASSWORD", "letmein")
    email = EmailConfig(to=("a@x.org", "b@x.org"), host="127.0.0.1", port=port, user="me")
    told(NotificationsConfig(email=email))
    ((addresses, text),) = received
    assert addresses == ["a@x.org", "b@x.org"]
    assert "Subject: it failed" in text and "From: a@x.org" in text and '"return": 1.5' in text


def test_amazon_sns(web, monkeypatch):
    address, received = web
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    told(NotificationsConfig(sns=TOPIC))
    form = urllib.parse.parse_qs(received[0][1])
    assert form["Action"] == ["Publish"] and form["TopicArn"] == [TOPIC]
    assert form["Subject"] == ["it failed"]


def test_only_chosen_events_are_told(web):
    address, received = web
    told(NotificationsConfig(webhook=address, events=("pipeline_failed",)))
    assert received == []


def test_what_cannot_be_sent_is_said_and_stops_nothing(web, capfd):
    address, _ = web
    told(
        NotificationsConfig(
            webhook=f"{address}/broken",
            command="echo it is late >&2; exit 3",
            email=EmailConfig(to=("a@x.org",), host="127.0.0.1", port=1),
        )
    )
    said = capfd.readouterr().err
    assert "notifications.webhook: not sent: HTTP Error 500" in said
    assert "notifications.command: not sent: exit status 3 it is late" in said
    assert "notifications.email: not sent: " in said


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NotificationsConfig(webhook="ftp://x"), "expected an address that begins with https"),
        (NotificationsConfig(webhook="$NOT_THERE"), "the environment has no variable NOT_THERE"),
        (NotificationsConfig(email=EmailConfig(user="me")), "set the password in the variable"),
        (NotificationsConfig(sns="topic"), "got 'topic', expected arn:aws:sns:REGION:ID:NAME"),
    ],
)
def test_mistakes(config, message, monkeypatch):
    monkeypatch.delenv("JAXRL_SMTP_PASSWORD", raising=False)
    with pytest.raises(UserError, match=message):
        check(config)


def test_a_pipeline_tells_about_its_sessions(web, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines.Pipeline, "_write_page", lambda self: None)
    address, received = web
    (tmp_path / "s.yaml").write_text(strict_yaml.dump(SMALL | {"total_timesteps": 128}))
    session = {"config": str(tmp_path / "s.yaml")}
    rows = [{"name": "a"} | session, {"name": "b", "success_criteria": {"return": 99}} | session]
    content = {"name": "p", "sessions": rows, "notifications": {"webhook": address}}
    (tmp_path / "p.yaml").write_text(strict_yaml.dump(content))
    assert run(pipelines.read(tmp_path / "p.yaml"), tmp_path / "p")[0] == 1
    texts = sorted(json.loads(body)["text"] for _, body in received)
    assert texts == [
        "p is failed: 1 of 2 sessions are complete",
        "p: a completed",
        "p: b failed: return is 10, must be at least 99",
    ]
