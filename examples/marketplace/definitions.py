"""A marketplace's features: users' purchases, page views and carts, products' returns, and sellers' response times.

The windows are of different kinds: the last five minutes, today, this week, the running session, the sessions of the
last 30 days, the last 90 days.
"""

from unskew import Calendar, Derived, Entity, Feature, FeatureView, Session, Sessions, Sliding, Stream, agg

NEW_YORK = "America/New_York"

user = Entity("user", key="user_id", description="Someone who buys")
product = Entity("product", key="product_id", description="An article, as sold")
seller = Entity("seller", key="seller_id", description="Someone who sells")

transactions = Stream(
    "transactions",
    topic="transactions",
    schema="schemas/transaction.avsc",
    partitioned_by="user_id",
    event_time="event_time",
    aliases=["transactions_table"],
    owner="payments",
    description="Purchases (real), declined ones and returns (generated)",
)
page_views = Stream(
    "page_views",
    topic="page_views",
    schema="schemas/page_view.avsc",
    partitioned_by="user_id",
    event_time="event_time",
    owner="web-shop",
    description="Looks at product pages (generated)",
)
cart_events = Stream(
    "cart_events",
    topic="cart_events",
    schema="schemas/cart_event.avsc",
    partitioned_by="user_id",
    event_time="event_time",
    # A cart event that is sent twice would be in the cart twice.
    event_id="cart_event_id",
    dedupe_within="1h",
    owner="web-shop",
    description="Products put into carts, taken out, and bought (generated)",
)
responses = Stream(
    "seller_responses",
    topic="seller_responses",
    schema="schemas/seller_response.avsc",
    partitioned_by="seller_id",
    event_time="event_time",
    owner="seller-care",
    description="Sellers' answers to questions (generated)",
)
visits = Sessions(
    "visits",
    stream=page_views,
    gap="30min",
    owner="web-shop",
    description="Page views that follow one another within half an hour",
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
            Calendar("day", tz=NEW_YORK),
            description="Mean dollars of today's purchases so far",
        ),
    ],
)

user_page_views = FeatureView(
    "user_page_views",
    entity=user,
    stream=page_views,
    owner="growth",
    features=[
        Feature("views_5m", agg.count(), Sliding("5min"), description="Product pages seen in the last 5 minutes"),
    ],
)

user_cart = FeatureView(
    "user_cart",
    entity=user,
    stream=cart_events,
    owner="growth",
    features=[
        Feature("cart_value", agg.sum("amount"), Session("30min"), description="Dollars in the cart now"),
        Feature("cart_items", agg.sum("quantity"), Session("30min"), description="Products in the cart now"),
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
            Sliding("30d"),
            description="Mean seconds from the first to the last page of a visit, over those that ended in the last 30 days",
        ),
        Feature("visits_30d", agg.count(), Sliding("30d"), description="Visits that ended in the last 30 days"),
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
            Sliding("90d"),
            filter="status = 'completed'",
            description="Times bought in the last 90 days",
        ),
        Feature(
            "returns_90d",
            agg.count(),
            Sliding("90d"),
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

seller_response_times = FeatureView(
    "seller_response_times",
    entity=seller,
    stream=responses,
    owner="seller-care",
    features=[
        Feature(
            "avg_response_s_week",
            agg.mean("response_s"),
            Calendar("week", tz=NEW_YORK),
            description="Mean seconds from question to answer, over this week's answers",
        ),
    ],
)
