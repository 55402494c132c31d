"""Objects as paths, conditions of writes, and stores that do not keep them."""

import pickle
import re
from pathlib import Path

import pytest

from tests.support.servers.objects import SECRET, Forgetful, Refusing, SeaweedFS, reaching
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.sinks import objects
from unskew.sinks.objects import ObjectPath, Superseded, at_hand, probe, table_path


def test_an_address_is_a_path_whose_text_it_is():
    path = table_path("s3://bucket/some/log/", "--log")

    assert isinstance(path, ObjectPath)
    assert str(path) == "s3://bucket/some/log"
    assert str(path / "view" / "v1") == "s3://bucket/some/log/view/v1"
    assert (path.name, path.key, str(path.parent), str(path.with_name("other"))) == (
        "log",
        "some/log",
        "s3://bucket/some",
        "s3://bucket/some/other",
    )
    assert pickle.loads(pickle.dumps(path)) == path
    assert sorted([path / "b", path / "a"]) == [path / "a", path / "b"]
    assert table_path("some/log", "--log") == Path("some/log")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://bucket", "give a bucket and a name in it, for example s3://bucket/log"),
        ("s3://", "give a bucket and a name in it"),
        ("gs://bucket/a/../b", "give a bucket and a name in it"),
        ("az://bucket/a//b", "give a bucket and a name in it"),
        ("s3://user:hidden@bucket/log", r"s3://\.\.\.: the address must not hold credentials"),
        ("s3://bucket/log?X-Amz-Signature=hidden", r"s3://\.\.\.: the address must not hold credentials"),
        ("s3://user:hid/den@bucket/log", r"s3://\.\.\.: the address must not hold credentials"),
        ("s3://bucket/a\nb", r"s3://bucket/a\\nb: give a bucket and a name in it"),
        ("s3://bucket/a\\b", "give a bucket and a name in it"),
        ("abfss://container@account/log", "it is an address, and only paths"),
        ("s3:/bucket/log", "it is an address, and only paths"),
    ],
)
def test_other_addresses_are_refused_and_secrets_in_them_are_not_shown(address, words):
    with pytest.raises(RequestError, match=f"--log .*{words}") as refused:
        table_path(address, "--log")

    assert not {"hidden", "hid/", "den@"} & set(re.findall(r"hidden|hid/|den@", str(refused.value)))


def test_names_are_those_of_the_address_whatever_characters_they_have(bucket):
    for odd in ("a b", "ü/ß", "x%20y", "%2e%2e", "a+b&c=d", "😀", "*[x]", "'~`^{}|<>", "a:b"):
        path = table_path(f"{bucket}/{odd}/log", "--log")
        probe(path, "--log")
        (path / "v1" / "day=1").write_bytes(b"1")

        assert list(path.objects()) == [path / "v1" / "day=1"]
        assert path / "v1" in set(path.iterdir())
        assert (path / "v1" / "day=1").read_bytes() == b"1"


def test_without_the_package_an_address_is_refused_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)

    with pytest.raises(RequestError, match=r"--log s3://bucket/log needs .* obstore, .*unskew\[objects\]"):
        table_path("s3://bucket/log", "--log")


def test_what_only_a_file_of_this_machine_can_do_is_an_error_and_touches_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ObjectPath("s3:", "bucket", "log")
    for act in (
        lambda: path.open("wb"),
        lambda: path.rename("other"),
        path.touch,
        lambda: path.chmod(0o600),
        path.read_text,
        lambda: open(path),  # noqa: SIM115, PTH123
    ):
        with pytest.raises((TypeError, NotImplementedError, StoreUnavailable)):
            act()
    assert list(tmp_path.iterdir()) == []


def test_objects_are_listed_read_and_removed_as_files_are(bucket):
    names = ["a/day=1/x.parquet", "a/day=1/y.parquet", "a/day=2/x.parquet", "ab/other", "top"]
    for name in names:
        (bucket / name).write_bytes(name.encode())

    assert [one.name for one in sorted(bucket.iterdir())] == ["a", "ab", "top"]
    assert [str(one)[len(str(bucket)) + 1 :] for one in (bucket / "a").objects()] == names[:3]
    assert [one.name for one in sorted((bucket / "a").glob("day=*"))] == ["day=1", "day=2"]
    assert len(list(bucket.glob("*/day=*/x.*"))) == 2
    assert (bucket.is_dir(), (bucket / "a").is_dir(), (bucket / "none").is_dir()) == (True, True, False)
    assert ((bucket / "top").is_file(), (bucket / "a").is_file(), (bucket / "a").exists()) == (True, False, True)
    assert (bucket / "top").read_bytes() == b"top"
    assert (bucket / "top").stat().st_size == 3
    (bucket / "top").unlink()
    (bucket / "top").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="top"):
        (bucket / "top").read_bytes()
    (bucket / "a").remove_all()
    assert [one.name for one in bucket.objects()] == ["other"]


def test_listings_of_several_pages_are_whole(bucket):
    wanted = {f"{number:04}" for number in range(1_203)}
    objects.together(lambda name: (bucket / name).write_bytes(b"1"), sorted(wanted))

    assert {one.name for one in bucket.objects()} == wanted
    bucket.remove_all()
    assert not bucket.is_dir()


def test_of_two_that_replace_one_version_one_is_refused(bucket):
    path = bucket / "coverage"
    first = path.replace_if(b"1", None)
    with pytest.raises(Superseded):
        path.replace_if(b"2", None)

    second = path.replace_if(b"3", first)
    with pytest.raises(Superseded):
        path.replace_if(b"4", first)
    with pytest.raises(Superseded):
        (bucket / "other").replace_if(b"4", first)

    assert path.versioned() == (b"3", second)


def test_copies_are_dropped_but_for_those_that_are_held(bucket):
    names = [f"{number}" for number in range(6)]
    for name in names:
        (bucket / name).write_bytes(bytes(1000))
    copies = objects._Copies(most_bytes=2_500)
    paths = sorted(bucket.objects())

    with copies.held(paths[0]) as first:
        for path in paths:
            copies.path_of(path)
        assert first.stat().st_size == 1000
        assert len(list(copies.folder.iterdir())) == 2 + 1
    assert copies.path_of(paths[-1]) == copies.path_of(paths[-1])

    (bucket / "0").write_bytes(b"another content")
    (changed,) = [path for path in bucket.objects() if path.name == "0"]
    with at_hand([changed, Path(__file__)]) as there:
        assert there[changed].read_bytes() == b"another content"
        assert there[Path(__file__)] == Path(__file__)


def test_copies_that_a_killed_process_left_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "unskew-objects-left").mkdir()
    (tmp_path / "unskew-objects-left" / "lock").touch()
    (tmp_path / "unskew-objects-left" / "copy").touch()

    copies = objects._Copies()
    objects._Copies()

    assert copies.folder.exists()
    assert not (tmp_path / "unskew-objects-left").exists()


def test_a_store_that_keeps_conditions_passes_the_probe_and_nothing_is_left(bucket):
    probe(bucket, "--log")

    assert not bucket.is_dir()


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (("if-none-match",), "writes an object although it exists"),
        (("if-match",), "replaces an object although its version is another one"),
        (("if-match", "if-none-match"), "so it could lose rows or keep them twice without an error"),
    ],
)
def test_a_store_that_ignores_conditions_is_refused(bucket, object_server: SeaweedFS, lost, words):
    with (
        Forgetful(object_server.port, lost) as server,
        reaching(server.environment),
        pytest.raises(RequestError, match=f"--log {bucket}: its object store .*{words}"),
    ):
        probe(bucket, "--log")

    assert not bucket.is_dir()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "hidden-wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ENDPOINT_URL": "http://user:hidden@127.0.0.1:1"}, "Connection refused"),
        ({"AWS_ALLOW_HTTP": "false"}, "AWS_ALLOW_HTTP"),
    ],
)
def test_a_store_that_cannot_be_reached_is_an_error_that_says_what_to_set_and_shows_no_secret(bucket, changed, words):
    with reaching(changed), pytest.raises(StoreUnavailable) as refused:
        probe(bucket, "--log")

    assert words in str(refused.value)
    assert str(bucket) in str(refused.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(refused.value)
    assert str(refused.value).startswith("--log ")
    assert "hidden" not in str(refused.value)
    with reaching(changed), pytest.raises(StoreUnavailable, match="AWS_SECRET_ACCESS_KEY"):
        bucket.is_dir()
    assert SECRET not in str(refused.value)


def test_a_bucket_that_is_not_there_is_an_error_that_says_so(bucket):
    with Refusing(404, "NoSuchBucket", "it does not exist") as server, reaching(server.environment):
        for act in (
            lambda: probe(bucket, "--log"),
            lambda: (bucket / "one").write_bytes(b"1"),
            lambda: list(bucket.objects()),
        ):
            with pytest.raises(StoreUnavailable, match=r"no such bucket|NoSuchBucket"):
                act()


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (403, "RequestTimeTooSkewed"), (501, "NotImplemented"), (409, "ConditionalRequestConflict")],
)
def test_whatever_a_store_answers_is_an_error_that_says_it_and_what_to_set(bucket, status, code):
    with Refusing(status, code, "said by the store") as server, reaching(server.environment):
        acts = [
            lambda: list(bucket.objects()),
            lambda: list(bucket.iterdir()),
            bucket.read_bytes,
            lambda: bucket.write_bytes(b"1"),
            bucket.unlink,
            bucket.is_dir,
        ]
        for act in acts:
            with pytest.raises(StoreUnavailable, match=f"{bucket}: {code}: said by the store; credentials .* AWS_"):
                act()
        with pytest.raises(Superseded if status == 409 else StoreUnavailable):
            bucket.replace_if(b"1", {"e_tag": "1"})
