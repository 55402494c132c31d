"""Features of visitors and of the pages that they look at."""

from unskew import Entity, Feature, FeatureView, Service, Sliding, Stream, agg

visitor = Entity("visitor", key="visitor_id", description="Someone who looks at pages")
page = Entity("page", key="page_id", description="A page of the site")

page_views = Stream(
    "page_views",
    topic="page_views",
    schema="schemas/page_view.avsc",
    # Events of one visitor are in one partition, so their features follow at once.
    partitioned_by="visitor_id",
    event_time="event_time",
    # How much later than it happened an event may come and still find its place.
    settle="2s",
    owner="web",
    description="Looks at pages",
)

visitor_activity = FeatureView(
    "visitor_activity",
    entity=visitor,
    stream=page_views,
    owner="growth",
    features=[
        Feature("views_5m", agg.count(), Sliding("5min"), description="Pages seen in the last five minutes"),
        Feature("views_1h", agg.count(), Sliding("1h"), description="Pages seen in the last hour"),
        Feature("last_device", agg.last("device"), Sliding("30d"), description="The device of the last view"),
    ],
)

page_popularity = FeatureView(
    "page_popularity",
    entity=page,
    stream=page_views,
    owner="growth",
    features=[
        Feature("views_1h", agg.count(), Sliding("1h"), description="Views in the last hour"),
        Feature("mean_dwell_s_1h", agg.mean("dwell_s"), Sliding("1h"), description="Mean seconds on the page"),
    ],
)

ranking = Service(
    "ranking",
    ["visitor_activity:views_5m", "visitor_activity:last_device", "page_popularity:views_1h"],
    owner="growth",
    description="What the model that ranks pages reads",
)
