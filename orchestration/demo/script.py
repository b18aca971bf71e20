"""Script of the demo: sentences, and for each video its scenes, encoding and planted defect.

The sentences were written for this demo. Each takes about five seconds, so two seldom fit into a clip of ten
seconds, and most videos cut to another shot between them. Every word must have one token in its pronunciation
(espeak joins words such as "of the"); a unit test checks that.
"""

from __future__ import annotations

from dataclasses import dataclass

SENTENCES: tuple[str, ...] = (
    "The old lighthouse above our village guides every fishing boat safely home before any winter storm.",
    "My brother keeps some brown chickens, and they follow him around his garden like small patient dogs.",
    "Please send both reports before Friday afternoon, because our bank closes early every summer.",
    "Fresh bread smells wonderful, but good bakers wake long before sunrise and rarely eat breakfast.",
    "When rain finally came, farmers stood outside their houses and laughed while water filled every field.",
    "Our train left Vienna just after midnight and crossed several mountains before anybody "
    "noticed a missing suitcase.",
    "She paints large blue windows, empty chairs, and quiet kitchens where somebody has clearly just left.",
    "A careful pilot checks fuel, weather, weight, and wind twice before leaving any airport behind.",
    "Children learn music faster when nobody forces them, and when their parents sing badly but often.",
    "Every library should keep a warm corner where people may sleep while heavy snow falls outside.",
    "Clever students built a wooden bridge across our narrow river and tested it with an elephant.",
    "He repairs broken clocks, forgotten radios, and cameras that nobody has opened since last winter.",
    "Most wild animals never travel farther than several miles, yet each spring they visit many new fields.",
    "Yesterday our doctor explained why regular sleep helps memory more than another cup of strong coffee.",
    "Many large birds flew over our village this morning, calling loudly, heading south much "
    "earlier than usual.",
    "Nobody accepted her story about a talking parrot until that bird politely ordered a large pizza.",
    "Warm milk with honey, a soft blanket, and some really funny books will cure almost any winter cold.",
    "The museum opens several new rooms next month, including a gallery filled with ancient maps.",
    "Our city planted many young trees last spring, mostly maples, oaks, and some wild cherries.",
    "Before computers, engineers drew each machine by hand, using sharp pencils and long wooden tables.",
    "Mountain goats climb steep walls easily because their feet grip small stones like soft rubber shoes.",
    "My cousins opened a tiny restaurant near our station, and now people wait for hours to eat dinner.",
    "Ocean water freezes more slowly than river water, which helps large boats reach distant "
    "ports every winter.",
    "My mother wrote hundreds of letters during those years, and our family still keeps them safe.",
    "Good teachers ask simple questions, wait patiently, and let silence work before anyone answers.",
    "Modern telescopes collect light that left those stars long before people started to build houses.",
    "Their dog waits beside our gate every evening until somebody brings him a newspaper and a biscuit.",
    "Strong ropes hold our tent during storms, but clever knots make packing everything quick afterwards.",
    "Some rivers disappear underground for many miles before rising again between green hills and farms.",
    "Carpenters measure wood carefully, mark a clean line, and finally cut slowly with steady hands.",
    "Winter mornings here begin with frozen windows, hungry birds, and fresh tracks across white fields.",
    "Every cook agreed that ripe tomatoes need nothing except salt, pepper, and patience before dinner.",
    "Sailors once believed that whistling brought bad wind, so silent sailors often kept their jobs.",
    "Tomorrow we visit another school, plant some apple trees, and play football with every class.",
    "People often forget their keys when somebody calls them away during a long and busy breakfast.",
    "The old theater smelled like dust and roses, and every single seat made noise during the second half.",
)


@dataclass(frozen=True)
class Scene:
    """One shot: voice (a key of `speech.VOICES`, or "reader"), look (a key of `portrait.LOOKS`), sentences.

    `lines` are numbers of `SENTENCES`; for the reader, of `reading.PASSAGES`.
    """

    voice: str
    look: str
    lines: tuple[int, ...]


@dataclass(frozen=True)
class VideoSpec:
    """One video: scenes, encoding, and planted defect ("" = none)."""

    name: str
    scenes: tuple[Scene, ...]
    fps: int = 25
    size: int = 384
    video: str = "libx264"
    audio: str = "aac"
    rate: int = 44_100
    channels: int = 2
    defect: str = ""


SOUND_LATE_MS = 400.0
"""Delay of the audio in the video with late audio."""

VIDEO_SPECS: tuple[VideoSpec, ...] = (
    VideoSpec(
        "joe_lighthouse.mp4",
        (
            Scene("joe", "astronaut", (0,)),
            Scene("joe", "astronaut_close", (1,)),
            Scene("joe", "astronaut", (2,)),
        ),
    ),
    VideoSpec(
        "joe_night_train.mkv",
        (Scene("joe", "astronaut", (3,)), Scene("joe", "astronaut_close", (5,))),
        audio="libvorbis",
        rate=48_000,
    ),
    VideoSpec(
        "joe_clocks.mov", (Scene("joe", "astronaut", (11, 13)),), fps=30, audio="pcm_s16le", rate=48_000
    ),
    VideoSpec("ann_windows.mov", (Scene("ann", "mirror", (6, 8, 9)),), fps=30, channels=1),
    VideoSpec(
        "ann_geese.webm",
        (Scene("ann", "mirror", (14,)), Scene("ann", "mirror_close", (16,))),
        video="libvpx",
        audio="libopus",
        rate=48_000,
    ),
    VideoSpec(
        "bob_trees.mp4",
        (Scene("bob", "dark_close", (18,)), Scene("bob", "dark", (20,))),
        video="mpeg4",
        rate=22_050,
        channels=1,
    ),
    VideoSpec(
        "bob_rivers.mkv",
        (Scene("bob", "dark", (28,)), Scene("bob", "dark_close", (22,))),
        fps=24,
        audio="flac",
        rate=32_000,
    ),
    VideoSpec("reader_best_of_times.mp4", (Scene("reader", "warm", (0, 1)),), fps=24, rate=48_000),
    VideoSpec("reader_before_us.avi", (Scene("reader", "warm", (2, 3)),), video="mpeg4", audio="pcm_s16le"),
    VideoSpec(
        "talk_joe_ann.mp4",
        (Scene("joe", "astronaut", (12,)), Scene("ann", "mirror", (15,)), Scene("joe", "astronaut", (21,))),
    ),
    VideoSpec(
        "talk_bob_ann.mkv",
        (Scene("bob", "dark", (23,)), Scene("ann", "mirror", (24,)), Scene("bob", "dark", (29,))),
        fps=30,
    ),
    VideoSpec("two_shots_ann.mp4", (Scene("ann", "mirror", (25,)), Scene("ann", "mirror_close", (26,)))),
    VideoSpec("two_shots_bob.mp4", (Scene("bob", "dark", (30,)), Scene("bob", "dark_close", (31,))), fps=30),
    VideoSpec("bad_no_sound.mp4", (Scene("joe", "astronaut", (32,)),), audio="", defect="no-sound"),
    VideoSpec("bad_no_face.mp4", (Scene("ann", "", (33,)),), defect="no-face"),
    VideoSpec("bad_sound_late.mp4", (Scene("bob", "dark", (34, 35)),), defect="sound-late"),
    VideoSpec("bad_truncated.mp4", (Scene("joe", "astronaut_close", (4,)),), defect="truncated"),
    VideoSpec("bad_text_file.mp4", (), defect="not-a-video"),
)
