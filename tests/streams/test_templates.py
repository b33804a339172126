"""Real paths, each with the name of its endpoint."""

from __future__ import annotations

import random
import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.templates import LONGEST, template

ROUTES = [
    "/",
    "*",
    "/index.html",
    "/favicon.ico",
    "/robots.txt",
    "/api/v1/users",
    "/api/v2.1/items",
    "/apis/apps/v1beta1/deployments",
    "/api/2/search",
    "/rest/api/2/issue",
    "/rest/api/3/issue",
    "/oauth2/token",
    "/oauth2/v3/certs",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    "/2fa/verify",
    "/k8s/healthz",
    "/s3/list",
    "/ipv4",
    "/ipv6",
    "/md5",
    "/sha1",
    "/sha-256",
    "/sha-512",
    "/base64/decode",
    "/web3/eth_blockNumber",
    "/h2c",
    "/e2e",
    "/b2b/i18n/en-US",
    "/i18n/locales/pt_BR.json",
    "/log4j2",
    "/log4j2.properties",
    "/x86_64/os",
    "/x509/certificates",
    "/pkcs12",
    "/arm64v8",
    "/ed25519",
    "/face2face",
    "/deadbeef",
    "/facade",
    "/decade",
    "/cafe24",
    "/added",
    "/mp3",
    "/mp4/h264",
    "/404.html",
    "/500.html",
    "/50x.html",
    "/status/404",
    "/status/500",
    "/errors/403",
    "/static/js/main.chunk.js",
    "/static/css/bootstrap4.min.css",
    "/jquery/3.6.0/jquery.min.js",
    "/jquery/3.7.1/jquery.min.js",
    "/fonts/roboto-v30-latin-regular.woff2",
    "/image@2x.png",
    "/image@3x.png",
    "/sitemap1.xml",
    "/sitemap2.xml",
    "/wp-json/wp/v2/posts",
    "/wp-content/themes/twentytwentyfour",
    "/swagger-ui/index.html",
    "/python3.11/site-packages",
    "/debian/dists/bookworm/main/binary-amd64/Packages.gz",
    "/ubuntu/dists/jammy-updates/InRelease",
    "/getUserByIdV2AndStatus",
    "/UserServiceV2/GetUsers20",
    "/HTTP2-Settings-Test-Page",
    "/UTF-8/decode",
    "/ISO-8859-1/decode",
    "/COVID-19",
    "/my-bucket-2024-archive-files",
    "/terms-and-conditions-2024",
    "/iphone-15-pro-max-256gb",
    "/v1/projects/p1:batchGet",
    "/v1/{name=projects}/p1",
    "/helloworld.Greeter/SayHello",
    "/grpc.health.v1.Health/Check",
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "/caf%C3%A9",
    "/%E4%B8%AD%E6%96%87/about",
    "/a%20b%20c",
    "//double//slash/",
    "/trailing/",
    "/google.com/about",
    "/service-worker-v2.js",
    "/manifest.webmanifest",
    "/graphql",
    "/socket.io",
    "/_next/static/chunks/pages/_app.js",
    "/cgi-bin/test-cgi",
    "/authenticateWithOauth2AndRedirect",
    "/internationalization18/settings",
]
"""Nothing of these varies: each keeps its name, and none becomes another's."""

TEMPLATES = """
/users/123                                        /users/{id}
/users/1                                          /users/{id}
/users/-5                                         /users/{id}
/users/123/orders/9f3c1a2b                        /users/{id}/orders/{hash}
/users/123/orders/9f3c1a2b4d5e6f708192a3b4c5d6e7f8 /users/{id}/orders/{hash}
/123                                              /{id}
/api/v1/users/00042                               /api/v1/users/{id}
/api/1234/users                                   /api/{id}/users
/users/123.json                                   /users/{id}.json
/invoices/invoice_00012345.pdf                    /invoices/invoice_{id}.pdf
/orders/order-12345/lines                         /orders/order-{id}/lines
/feed/2                                           /feed/{id}
/2024/01/31/hello-world                           /{id}/{id}/{id}/hello-world
/u/3fa85f64-5717-4562-b3fc-2c963f66afa6           /u/{uuid}
/u/3FA85F64-5717-4562-B3FC-2C963F66AFA6/x         /u/{uuid}/x
/u/user-3fa85f64-5717-4562-b3fc-2c963f66afa6      /u/user-{uuid}
/f/3fa85f64-5717-4562-b3fc-2c963f66afa6.png       /f/{uuid}.png
/m/507f1f77bcf86cd799439011                       /m/{hash}
/commit/da39a3ee5e6b4b0d3255bfef95601890afd80709  /commit/{hash}
/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 /blobs/sha256:{hash}
/tx/0xde0b295669a9fd93d5f28d9ec85e40f4            /tx/{hash}
/static/js/main.9f3c1a2b.js                       /static/js/main.{hash}.js
/assets/app-5d41402abc4b2a76.css                  /assets/app-{hash}.css
/dp/B08N5WRWNW                                    /dp/{hash}
/ulid/01ARZ3NDEKTSV4RRFFQ69G5FAV                  /ulid/{hash}
/t/V1StGXR8_Z5jdHi6B-myT                          /t/{hash}
/q/k3j9x2m4p8q1w7z5                               /q/{hash}
/b/dGVzdDEyMzQ1Njc4OTA%3D                         /b/{hash}%3D
/b/dGVzdDEyMzQ1Njc4OTA=                           /b/{hash}=
/reports/2024-01-31                               /reports/{date}
/reports/2024-01                                  /reports/{date}
/since/2024-01-31T12:00:00Z                       /since/{date}
/since/2024-01-31T12:00:00.123+01:00/x            /since/{date}/x
/hosts/10.0.0.1/ports                             /hosts/{ip}/ports
/users/john.doe@example.com/mail                  /users/{email}/mail
/users/john%40example.com                         /users/{email}
/weather/52.5200,13.4050                          /weather/{id},{id}
/Products(5)/Name                                 /Products({id})/Name
/items/id=5;lang=en                               /items/id={id};lang=en
/a;jsessionid=1A530637289A03B07199A44E8D531427.r1 /a;jsessionid={hash}.r1
http://shop:8080/cart/7?x=1                       /cart/{id}
https://shop                                      /
/cart/7?session=9#top                             /cart/{id}
""".strip().splitlines()


def test_routes_stay_as_they_are() -> None:
    assert {route: template(route) for route in ROUTES} == {route: route for route in ROUTES}


@pytest.mark.parametrize("line", TEMPLATES)
def test_what_varies_gets_a_placeholder(line: str) -> None:
    path, name = line.split()
    assert template(path) == name


def test_random_ids_of_all_sorts_become_one_name() -> None:
    chance = random.Random(1)
    kinds = {
        "/{uuid}/x": lambda: str(uuid.UUID(int=chance.getrandbits(128))),
        "/{id}/x": lambda: str(chance.randrange(1, 10**12)),
        "/{hash}/x": lambda: "".join(chance.choices("0123456789abcdef", k=32)),
    }
    for name, make in kinds.items():
        found = [template(f"/{make()}/x") for _ in range(2_000)]
        assert found.count(name) == 2_000, name
    # Tokens may look like words by chance: then they count toward the limit of their service.
    for length, share in ((20, 0.9), (22, 0.92), (28, 0.96), (43, 0.99)):
        tokens = ["".join(chance.choices(string.ascii_letters + string.digits, k=length))
                  for _ in range(2_000)]  # fmt: skip
        found = [template(f"/{token}/x") for token in tokens]
        assert found.count("/{hash}/x") > 2_000 * share, length


@given(st.text(max_size=400))
def test_any_text_has_a_name_of_bounded_length(text: str) -> None:
    assert len(template(text)) <= max(LONGEST, 1)


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyzABCDEFGH-_.~", max_size=12), max_size=6))
def test_words_stay(segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    assert template(path) == path


@given(st.lists(st.sampled_from([line.split()[0] for line in TEMPLATES[:-3]]), max_size=3))
def test_a_name_is_its_own_name(paths: list[str]) -> None:
    name = template("".join(paths))
    assert template(name) == name


def test_a_long_path_is_cut() -> None:
    name = template("/word" * 100)
    assert len(name) == LONGEST
    assert name.endswith("{...}")
