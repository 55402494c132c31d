"""The bytes that reach Redis are a contract with readers in any language: a change here is a decision."""

from tests.support.plans import DAY, Wanted, sliding, view
from tests.support.typed import FULL, NAMES, ORDERS
from tests.support.updates import current
from unskew.sinks.redis.keyspace import clock_field, clock_key, registry_key
from unskew.sinks.redis.resp import RowEncoder

PURCHASES = view(
    Wanted("count_30d", "count", sliding(30 * DAY, DAY)),
    Wanted("spend_30d", "sum", sliding(30 * DAY, DAY), "x"),
    Wanted("online", "last", sliding(30 * DAY, DAY), "x > 0", of="bool"),
    name="purchases",
)
NOW = 1_500_000_000_000_000


def sent(**row: object) -> str:
    encoded = RowEncoder(PURCHASES, "unskew").encode(current(PURCHASES, [{"key": "u%2F1|7", **row}]), NOW)
    return encoded.data.decode().replace("\r\n", " ")


def test_a_whole_row_is_one_hset():
    assert sent(
        count_30d=12, spend_30d=0.30000000000000004, online=False, _at=1490000000000001, _until=1490000000000002
    ) == (
        "*12 $4 HSET $28 unskew:purchases@1:{u%2F1|7} $9 count_30d $2 12 $9 spend_30d $19 0.30000000000000004 "
        "$6 online $1 0 $3 _at $16 1490000000000001 $6 _until $16 1490000000000002 "
    )


def test_null_fields_are_removed_in_the_same_transaction():
    assert sent(count_30d=0, spend_30d=-1e300, _at=1, _until=2) == (
        "*1 $5 MULTI "
        "*10 $4 HSET $28 unskew:purchases@1:{u%2F1|7} $9 count_30d $1 0 $9 spend_30d $7 -1e+300 $3 _at $1 1 $6 _until $1 2 "
        "*3 $4 HDEL $28 unskew:purchases@1:{u%2F1|7} $6 online "
        "*1 $4 EXEC "
    )


WHOLE = {"count_30d": 1, "spend_30d": 1.0, "online": True, "_at": 1, "_until": 2, "_empty_at": NOW + 1}
HSET = (
    "*12 $4 HSET $28 unskew:purchases@1:{u%2F1|7} $9 count_30d $1 1 $9 spend_30d $3 1.0 $6 online $1 1 "
    "$3 _at $1 1 $6 _until $1 2 "
)


def test_a_key_has_no_expiry():
    assert sent(**WHOLE) == HSET


def test_an_expiry_that_somebody_else_gave_is_removed():
    encoded = RowEncoder(PURCHASES, "unskew").encode(
        current(PURCHASES, [{"key": "u%2F1|7", **WHOLE}]), NOW, persist=True
    )

    assert encoded.data.decode().replace("\r\n", " ") == HSET + "*2 $7 PERSIST $28 unskew:purchases@1:{u%2F1|7} "
    assert encoded.n_replies == 2


def test_an_expiry_that_is_asked_for_is_so_long_after_the_row_empties_in_whole_milliseconds():
    encoder = RowEncoder(PURCHASES, "unskew", expire_after_us=7 * DAY)
    encoded = encoder.encode(current(PURCHASES, [{"key": "u%2F1|7", **WHOLE}]), NOW)

    assert encoded.data.decode().replace("\r\n", " ") == (
        HSET + "*3 $9 PEXPIREAT $28 unskew:purchases@1:{u%2F1|7} $13 1500604800001 "
    )


def test_a_gone_row_is_deleted():
    assert sent(count_30d=0, spend_30d=0.0, _at=1, _gone=True) == "*2 $3 DEL $28 unskew:purchases@1:{u%2F1|7} "


def test_values_of_every_type():
    encoded = RowEncoder(ORDERS, "unskew").encode(current(ORDERS, [{"key": "a", **FULL, "_at": 1, "_until": 2}]), NOW)
    shop = 'a\r\n$3\r\n\0"\\/é\u2028😀'
    quoted = '"a\\r\\n$3\\r\\n\\u0000\\"\\\\/é\u2028😀"'

    texts = [
        "-9223372036854775808", "-12.30", "1e+300", "0", shop, "92233720368547758.07", "1500000000000001",
        "[9223372036854775807,0,-1]", "[0.1,1e+16,-5e-324]", "[true,false]", f'["",{quoted}]', '["0.05","-0.05"]',
        "[1500000000000001,-315619200000000]", f'{{"b":2,"a":1,"":1,{quoted}:1}}',
        '{"b":0.30000000000000004,"a":-1e-7}', '{"b":"1.20","a":"0.00","other":"3.00"}', "0.1", "1", "1", "2",
    ]  # fmt: skip
    arguments = ["HSET", "unskew:orders@1:{a}"]
    for name, text in zip([*NAMES, "_at", "_until"], texts, strict=True):
        arguments += [name, text]
    expected = "".join(f"${len(argument.encode())}\r\n{argument}\r\n" for argument in arguments)
    assert encoded.data.decode() == f"*42\r\n{expected}"


def test_names_beside_the_values():
    assert registry_key("unskew") == "unskew:registry"
    assert clock_key("unskew", "main") == "unskew:clock:main"
    assert clock_field(PURCHASES, "p0.1") == "purchases@1/p0.1"
