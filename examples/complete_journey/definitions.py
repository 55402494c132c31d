"""A grocery chain's features: purchases and page views of households, products and stores.

Two streams feed three entities. Both topics are partitioned by household, so a household's features follow its own
partition and are fresh at once. Events of products and stores come from every partition, so they are ordered first.
"""

from unskew import Calendar, Entity, Feature, FeatureView, Sliding, Stream, agg

household = Entity("household", key="household_id", description="A household with a loyalty card")
product = Entity("product", key="product_id", description="An article, as sold")
store = Entity("store", key="store_id", description="A shop")

transactions = Stream(
    "transactions",
    topic="transactions",
    schema="schemas/transaction.avsc",
    partitioned_by="household_id",
    event_time="event_time",
    aliases=["transactions_table"],
    owner="checkout",
    description="Basket lines from the tills",
)
page_views = Stream(
    "page_views",
    topic="page_views",
    schema="schemas/page_view.avsc",
    partitioned_by="household_id",
    event_time="event_time",
    owner="web-shop",
    description="Looks at product pages (generated)",
)

household_purchases = FeatureView(
    "household_purchases",
    entity=household,
    stream=transactions,
    owner="growth",
    where="quantity > 0",
    features=[
        Feature("purchase_count_30d", agg.count(), Sliding("30d"), description="Products bought in the last 30 days"),
        Feature("spend_30d", agg.sum("sales_value"), Sliding("30d"), description="Dollars spent in the last 30 days"),
        Feature("mean_amount_30d", agg.mean("sales_value"), Sliding("30d"), description="Mean dollars per product"),
        Feature("min_amount_30d", agg.min("sales_value"), Sliding("30d"), description="Cheapest product, dollars"),
        Feature("max_amount_30d", agg.max("sales_value"), Sliding("30d"), description="Dearest product, dollars"),
        Feature("last_amount_30d", agg.last("sales_value"), Sliding("30d"), description="Latest product, dollars"),
        Feature(
            "purchases_today",
            agg.count(),
            Calendar("day", tz="America/New_York"),
            description="Products bought since midnight",
        ),
    ],
)

product_purchases = FeatureView(
    "product_purchases",
    entity=product,
    stream=transactions,
    owner="assortment",
    where="quantity > 0",
    features=[
        Feature("purchase_count_7d", agg.count(), Sliding("7d"), description="Times bought in the last 7 days"),
        Feature("purchase_count_30d", agg.count(), Sliding("30d"), description="Times bought in the last 30 days"),
    ],
)

store_purchases = FeatureView(
    "store_purchases",
    entity=store,
    stream=transactions,
    owner="operations",
    where="quantity > 0",
    features=[
        Feature("purchase_count_7d", agg.count(), Sliding("7d"), description="Products sold in the last 7 days"),
        Feature("purchase_count_30d", agg.count(), Sliding("30d"), description="Products sold in the last 30 days"),
    ],
)

household_page_views = FeatureView(
    "household_page_views",
    entity=household,
    stream=page_views,
    owner="growth",
    features=[
        Feature("views_5m", agg.count(), Sliding("5m"), description="Product pages seen in the last 5 minutes"),
        Feature("views_1h", agg.count(), Sliding("1h"), description="Product pages seen in the last hour"),
    ],
)

product_page_views = FeatureView(
    "product_page_views",
    entity=product,
    stream=page_views,
    owner="assortment",
    features=[
        Feature("views_5m", agg.count(), Sliding("5m"), description="Looks at the product in the last 5 minutes"),
        Feature("views_1h", agg.count(), Sliding("1h"), description="Looks at the product in the last hour"),
    ],
)
