"""Features of drivers, and of the zones in which rides begin."""

from unskew import Calendar, Entity, Feature, FeatureView, Service, Sliding, Stream, agg

driver = Entity("driver", key="driver_id", description="Someone who drives")
zone = Entity("zone", key="zone", description="A part of the city")

rides = Stream(
    "rides",
    topic="rides",
    schema="schemas/ride.avsc",
    # Rides of one driver are in one partition, so their features follow at once.
    partitioned_by="driver_id",
    event_time="event_time",
    # How much later than it happened an event may come and still find its place.
    settle="2s",
    owner="dispatch",
    description="Rides that have ended",
)

driver_rides = FeatureView(
    "driver_rides",
    entity=driver,
    stream=rides,
    owner="matching",
    features=[
        Feature("rides_1h", agg.count(), Sliding("1h"), description="Rides in the last hour"),
        Feature(
            "fares_today", agg.sum("fare"), Calendar("day", tz="UTC"), default=0.0, description="Fares since midnight"
        ),
        Feature("mean_rating_30d", agg.mean("rating"), Sliding("30d"), description="Mean stars of the last 30 days"),
    ],
)

zone_demand = FeatureView(
    "zone_demand",
    entity=zone,
    stream=rides,
    owner="matching",
    features=[
        Feature("rides_15m", agg.count(), Sliding("15min"), description="Rides in the last 15 minutes"),
        Feature("mean_fare_1h", agg.mean("fare"), Sliding("1h"), description="Mean fare of the last hour"),
    ],
)

matching = Service(
    "matching",
    ["driver_rides:rides_1h", "driver_rides:mean_rating_30d", "zone_demand:rides_15m"],
    owner="matching",
    description="What the model that assigns drivers reads",
)
