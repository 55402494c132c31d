"""Features of users who pay and of merchants who are paid."""

from unskew import Entity, Feature, FeatureView, Service, Sliding, Stream, agg

user = Entity("user", key="user_id", description="Someone who pays")
merchant = Entity("merchant", key="merchant_id", description="Someone who is paid")

transactions = Stream(
    "transactions",
    topic="transactions",
    schema="schemas/transaction.avsc",
    # Events of one user are in one partition, so their features follow at once.
    partitioned_by="user_id",
    event_time="event_time",
    # How much later than it happened an event may come and still find its place.
    settle="2s",
    owner="payments",
    description="Payments, completed and declined",
)

user_payments = FeatureView(
    "user_payments",
    entity=user,
    stream=transactions,
    owner="risk",
    where="status = 'completed'",
    features=[
        Feature("payments_1h", agg.count(), Sliding("1h"), description="Completed payments in the last hour"),
        Feature("spend_30d", agg.sum("amount"), Sliding("30d"), default=0.0, description="Dollars in the last 30 days"),
        Feature("mean_amount_30d", agg.mean("amount"), Sliding("30d"), description="Mean dollars of a payment"),
    ],
)

merchant_payments = FeatureView(
    "merchant_payments",
    entity=merchant,
    stream=transactions,
    owner="risk",
    features=[
        Feature("payments_10m", agg.count(), Sliding("10min"), description="Payments in the last ten minutes"),
        Feature(
            "declined_10m", agg.count(), Sliding("10min"), where="status = 'declined'", description="Declined ones"
        ),
    ],
)

fraud = Service(
    "fraud",
    ["user_payments:payments_1h", "user_payments:spend_30d", "merchant_payments:declined_10m"],
    owner="risk",
    description="What the model of fraudulent payments reads",
)
