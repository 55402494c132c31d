"""Features of users' visits: sessions of clicks with less than half an hour between them."""

from unskew import Entity, Feature, FeatureView, Service, Session, Sessions, Sliding, Stream, agg

user = Entity("user", key="user_id", description="Someone who clicks")

clicks = Stream(
    "clicks",
    topic="clicks",
    schema="schemas/click.avsc",
    # Clicks of one user are in one partition, so their features follow at once.
    partitioned_by="user_id",
    event_time="event_time",
    # How much later than it happened an event may come and still find its place.
    settle="2s",
    owner="app",
    description="Clicks in the app",
)

visits = Sessions(
    "visits",
    stream=clicks,
    gap="30min",
    owner="app",
    description="Clicks that follow one another within half an hour",
)

user_now = FeatureView(
    "user_now",
    entity=user,
    stream=clicks,
    owner="growth",
    features=[
        Feature("clicks_in_visit", agg.count(), Session("30min"), description="Clicks in the visit that is going on"),
        Feature("last_screen", agg.last("screen"), Session("30min"), description="The screen of the last click in it"),
    ],
)

user_visits = FeatureView(
    "user_visits",
    entity=user,
    stream=visits,
    owner="growth",
    features=[
        Feature("visits_30d", agg.count(), Sliding("30d"), description="Visits that ended in the last 30 days"),
        Feature("mean_length_s_30d", agg.mean("length_s"), Sliding("30d"), description="Their mean length in seconds"),
    ],
)

next_step = Service(
    "next_step",
    ["user_now:clicks_in_visit", "user_now:last_screen", "user_visits:mean_length_s_30d"],
    owner="growth",
    description="What the model of a user's next step reads",
)
