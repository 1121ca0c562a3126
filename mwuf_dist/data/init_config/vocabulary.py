"""The words of columns' names that say what a column is."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Of users, the surest first.
USER = _words(
    """
    user usr uid customer cust member visitor account listener reader viewer client buyer shopper reviewer
    consumer subscriber household person player student msno username profile profilename passenger patient guest
    learner applicant donor contact employee gamer login email distinct uuid anonymous anon session
    """
)
# Of items.
ITEM = _words(
    """
    item iid movie film product article adgroup ad track song video book recipe news sku asin isbn game app
    business anime hotel listing restaurant venue poi course job post photo place podcast show stock ean gtin upc
    barcode plu variant art creative content goods media artist document doc joke beer wine pin stream feed story
    clip episode property food dish exercise question location spot gmap offer campaign banner aid
    """
)
# Of items only where a word for IDs follows: a title, a page and a channel are attributes elsewhere.
ITEM_BY_ID = _words(
    """
    title program programme page channel plan service part material drug medicine
    """
)
# Of the time of the event.
TIME = _words(
    """
    timestamp time_stamp event_time unix_review_time time ts datetime date created played occurred viewed
    clicked_at purchased_at at day dat when dt tstamp hour week
    """
)
# Times where they are the whole name.
ALONE = _words(
    """
    start started begin
    """
)
# Of a column that says whether the row is a positive.
LABEL = _words(
    """
    label clicked click clk target liked like purchased purchase bought converted conversion is_buy buy reward
    is_positive trade booking booked recommended listened finished finish completed installed subscribed accepted
    y
    """
)
# Counts that are positives from 1 on, where they are the whole name.
LABEL_COUNTS = _words(
    """
    clicks conversions purchases orders buys bookings installs
    """
)
# Of a rating.
RATING = _words(
    """
    rating ratings rate stars star score overall grade review_score preference vote
    """
)
# Of a column that holds what happened.
ACTION = _words(
    """
    event_type event_name event behavior_type behaviour_type behavior behaviour action_type action btag
    interaction_type interaction activity
    """
)
# After the word of an entity they make its ID.
ID_WORDS = frozenset(
    _words(
        """
    code guid hash id ids idx index key no nr num number pk ref sk uri uuid
    """
    )
)
# Between the word of an entity and that for its ID: user_pseudo_id.
WORDS_BEFORE_ID = frozenset(
    _words(
        """
    anonymous clean master pseudo
    """
    )
)
# IDs with digits after them: isbn13.
NUMBERED = frozenset(
    _words(
        """
    ean gtin isbn upc
    """
    )
)
# Where there is no ID, a name is one.
NAMES = frozenset(
    _words(
        """
    name title
    """
    )
)
# Before the word of an entity they change nothing.
PREFIXES = frozenset(
    _words(
        """
    anon anonymous click clicked dim encrypted fk full hashed raw target the
    """
    )
)
# With one of them a time is another than that of the event, or a length.
NOT_A_TIME = frozenset(
    _words(
        """
    birth delivered delivery dow due duration dwell elapsed end ended expire expires expiry first hours join
    joined last launch launched listening load modified of on per play publish published reading registered
    registration release released response session ship shipped signup since spent stay stop times updated watch
    watched watching zone
    """
    )
)
# Say how a time is written.
UNITS = frozenset(
    _words(
        """
    collector epoch gmt local millis ms ns sec seconds secs unix us utc
    """
    )
)
# With one of them a column is no label.
NO_LABEL = frozenset(
    _words(
        """
    at avg count counts date encoder first id last past prev previous prior rate ratio since time timestamp ts
    type url verified
    """
    )
)
# After the word of a label they change nothing.
AFTER_LABEL = frozenset(
    _words(
        """
    binary bool flag ind indicator yn
    """
    )
)
# With one of them a rating is not that of the row.
NO_RATING = frozenset(
    _words(
        """
    average avg credit item mean predicted propensity risk seller shop
    """
    )
)
# With one of them a column does not hold what happened.
NO_ACTION = frozenset(
    _words(
        """
    count date day duration hour id key param params time timestamp ts value
    """
    )
)
# Before a word they turn it round.
NOT = frozenset({"dis", "never", "no", "non", "not", "un", "without"})
# What was done and taken back.
TAKEN_BACK = frozenset(
    _words(
        """
    cancel canceled cancelled refund refunded return returned skip skipped
    """
    )
)
REMOVED = frozenset({"delete", "hide", "removal", "remove", "removed"})
# With one of them a thing is no positive.
NEGATIONS = NOT | TAKEN_BACK | REMOVED | {"from", "report"}
# What a person was shown.
SHOWN = frozenset(
    _words(
        """
    dislike disliked exposure exposures ignore impression impressions pv show shown view views
    """
    )
)
# What happened, and is no positive.
NO_POSITIVE = NEGATIONS | SHOWN
# Numbers that are amounts.
AMOUNTS = frozenset(
    _words(
        """
    age amount avg cost count distance duration income length mean num price qty quantity rate ratio salary score
    seats size sum total weight year
    """
    )
)
# Numbers that are codes.
CODES = frozenset(
    _words(
        """
    aisle artist author brand campaign cat cate categories category channel city class cluster color colour
    country county department dept director format genre group lang language manufacturer material merchant model
    occupation os postal postcode province publisher region section segment seller shop state store style
    subcategory subclass supplier tag topic type vendor zip
    """
    )
)

# What is known of a row before anybody has acted on it; of all else a row may hold what came of it (a dwell time, a
# price paid), which no model may read.
REQUEST_WORDS = frozenset(
    _words(
        """
    browser carrier channel connection daypart dayofweek device hour locale network os placement platform pos position
    slot weekday
    """
    )
)
# After the word of a label they make the time of it: clicked_at.
TIMES_OF_LABEL = frozenset({"at", "date", "datetime", "on", "time", "timestamp", "ts", "when"})
# Sums over rows of a log, which know their labels.
OUTCOMES = frozenset({"ctr", "cvr", "ctcvr", "popularity", "sales", "bestseller"})
# What is summed, where one of the words behind says so.
COUNTABLE = frozenset(
    _words(
        """
    booking bookings click clicks conversion conversions impression impressions install installs like likes order orders
    play plays purchase purchases rating ratings review reviews sold stars view views votes
    """
    )
)
COUNTED = frozenset({"average", "avg", "count", "counts", "mean", "num", "number", "rate", "ratio", "sum", "total"})
# What a weight of a row is called after, where it is called after anything.
WEIGHED = {"sample", "row", "instance", "example", "case", "importance", "event", "loss", "training", "propensity"}
