"""A shop's features: of users, products and sellers over several kinds of windows, and of the request itself."""

from unskew import (
    Calendar,
    Derived,
    Entity,
    Feature,
    FeatureView,
    Lifetime,
    OnDemand,
    Service,
    Session,
    Sessions,
    Sliding,
    Stream,
    agg,
    haversine,
)

BERLIN = "Europe/Berlin"

user = Entity("user", key="user_id", description="Someone who buys")
product = Entity("product", key="product_id", description="An article")
seller = Entity("seller", key="seller_id", description="Someone who sells")

page_views = Stream(
    "page_views",
    topic="page_views",
    schema="schemas/page_view.avsc",
    partitioned_by="user_id",
    event_time="event_time",
    settle="1s",
    owner="web",
    description="Looks at pages",
)
transactions = Stream(
    "transactions",
    topic="transactions",
    schema="schemas/transaction.avsc",
    partitioned_by="user_id",
    event_time="event_time",
    settle="1s",
    owner="payments",
    description="Products that are paid for, declined or brought back",
)
cart_events = Stream(
    "cart_events",
    topic="cart_events",
    schema="schemas/cart_event.avsc",
    partitioned_by="user_id",
    event_time="event_time",
    settle="1s",
    owner="web",
    description="Products that enter carts and leave them",
)
seller_answers = Stream(
    "seller_answers",
    topic="seller_answers",
    schema="schemas/seller_answer.avsc",
    partitioned_by="seller_id",
    event_time="event_time",
    settle="1s",
    owner="seller-care",
    description="Sellers' answers to questions",
)
logins = Stream(
    "logins",
    topic="logins",
    schema="schemas/login.avsc",
    partitioned_by="user_id",
    event_time="event_time",
    settle="1s",
    owner="accounts",
    description="Users who log in",
)
visits = Sessions(
    "visits",
    stream=page_views,
    gap="30min",
    hop="1min",
    owner="web",
    description="Page views that follow one another within half an hour",
)

user_page_views = FeatureView(
    "user_page_views",
    entity=user,
    stream=page_views,
    owner="growth",
    features=[
        Feature("views_5m", agg.count(), Sliding("5min", hop="1s"), description="Pages seen in the last 5 minutes")
    ],
)
user_transactions = FeatureView(
    "user_transactions",
    entity=user,
    stream=transactions,
    owner="growth",
    where="status = 'completed'",
    features=[
        Feature(
            "avg_amount_today",
            agg.mean("amount"),
            Calendar("day", tz=BERLIN),
            description="Mean of the amounts paid today, so far",
        ),
    ],
)
user_cart = FeatureView(
    "user_cart",
    entity=user,
    stream=cart_events,
    owner="growth",
    features=[
        # The shop empties a cart that is not touched for half an hour, and so does the window.
        Feature(
            "cart_value",
            agg.sum("amount"),
            Session("30min", hop="1min"),
            description="What is in the cart now, in euros",
        ),
    ],
)
user_visits = FeatureView(
    "user_visits",
    entity=user,
    stream=visits,
    owner="growth",
    features=[
        Feature(
            "avg_length_s_30d",
            agg.mean("length_s"),
            Sliding("30d", hop="1d"),
            description="Mean seconds from the first to the last page of a visit, over those that ended in the last 30 days",
        ),
    ],
)
product_returns = FeatureView(
    "product_returns",
    entity=product,
    stream=transactions,
    owner="assortment",
    features=[
        Feature(
            "purchases_90d",
            agg.count(),
            Sliding("90d", hop="1d"),
            filter="status = 'completed'",
            description="Times bought in the last 90 days",
        ),
        Feature(
            "returns_90d",
            agg.count(),
            Sliding("90d", hop="1d"),
            filter="status = 'returned'",
            description="Times brought back in the last 90 days",
        ),
        Derived(
            "return_rate_90d",
            "returns_90d / purchases_90d",
            description="Returns per purchase in the last 90 days; null where nothing was bought",
        ),
    ],
)
seller_answer_times = FeatureView(
    "seller_answer_times",
    entity=seller,
    stream=seller_answers,
    owner="seller-care",
    features=[
        Feature(
            "avg_response_s_week",
            agg.mean("response_s"),
            Calendar("week", tz=BERLIN),
            description="Mean seconds from question to answer, over this week's answers",
        ),
    ],
)
user_logins = FeatureView(
    "user_logins",
    entity=user,
    stream=logins,
    owner="accounts",
    features=[
        Feature("last_login", agg.last_time(), Lifetime(), description="When the user last logged in"),
        Feature("last_lat", agg.last("lat"), Lifetime(), description="Where that was, in degrees north"),
        Feature("last_lon", agg.last("lon"), Lifetime(), description="Where that was, in degrees east"),
    ],
)

request = OnDemand(
    "request",
    inputs={"lat": "float64", "lon": "float64", "query": "string"},
    features=[
        Derived(
            "since_login_s",
            "seconds_between(user_logins:last_login, now)",
            description="Seconds since the user last logged in",
        ),
        Derived(
            "distance_km",
            haversine("lat", "lon", "user_logins:last_lat", "user_logins:last_lon"),
            description="Kilometres from there to where the request is made",
        ),
        Derived("query_length", "char_length(query)", description="Characters of the text that is searched for"),
    ],
    owner="search",
    description="What only a request knows, beside what is known of its user",
)

ranking = Service(
    "ranking",
    [
        "user_page_views:views_5m",
        "user_transactions:avg_amount_today",
        "user_cart:cart_value",
        "user_visits:avg_length_s_30d",
        "product_returns:return_rate_90d",
        "seller_answer_times:avg_response_s_week",
        "request:since_login_s",
        "request:distance_km",
        "request:query_length",
    ],
    owner="search",
    description="What the model that ranks products reads",
)
