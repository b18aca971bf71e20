"""Times of words and phones in the recorded reading (weights "two-cities").

The recording never changes (its SHA-256 is checked), so its times are stored as data: forced alignment by
pocketsphinx, phrase by phrase, median of 30 runs with different margins. Nearly all word starts agreed within
10-20 ms. The times are aligned, not planted, so scores of word times leave them out.
"""

PHRASES: tuple[tuple[tuple[str, int, str], ...], ...] = (
    (
        ("it", 117, "IH:10 T:8"),
        ("was", 135, "W:9 AH:3 Z:14"),
        ("the", 161, "DH:3 AH:3"),
        ("best", 167, "B:7 EH:10 S:14 T:5"),
        ("of", 203, "AH:4 V:6"),
        ("times", 213, "T:9 AY:32 M:12 Z:19"),
    ),
    (
        ("it", 296, "IH:9 T:4"),
        ("was", 309, "W:7 AH:3 Z:9"),
        ("the", 328, "DH:3 AH:5"),
        ("worst", 336, "W:13 ER:11 S:9 T:8"),
        ("of", 377, "AH:4 V:6"),
        ("times", 387, "T:9 AY:27 M:15 Z:21"),
    ),
    (
        ("it", 501, "IH:5 T:3"),
        ("was", 509, "W:6 AH:3 Z:9"),
        ("the", 527, "DH:4 IY:6"),
        ("age", 537, "EY:17 JH:9"),
        ("of", 563, "AH:3 V:9"),
        ("wisdom", 575, "W:7 IH:3 Z:11 D:4 AH:7 M:16"),
    ),
    (
        ("it", 665, "IH:3 T:6"),
        ("was", 674, "W:4 AH:3 Z:11"),
        ("the", 692, "DH:3 IY:6"),
        ("age", 701, "EY:16 JH:9"),
        ("of", 726, "AH:3 V:5"),
        ("foolishness", 734, "F:10 UW:14 L:6 IH:4 SH:14 N:4 AH:10 S:26"),
    ),
    (
        ("it", 1346, "IH:8 T:6"),
        ("was", 1360, "W:3 AH:4 Z:7"),
        ("the", 1374, "DH:3 AH:3"),
        ("season", 1380, "S:12 IY:12 Z:9 AH:3 N:4"),
        ("of", 1420, "AH:3 V:7"),
        ("light", 1430, "L:11 AY:22 T:21"),
    ),
    (
        ("it", 1513, "IH:6 T:5"),
        ("was", 1524, "W:6 AH:3 Z:8"),
        ("the", 1541, "DH:3 AH:3"),
        ("season", 1547, "S:12 IY:10 Z:8 AH:3 N:5"),
        ("of", 1585, "AH:4 V:7"),
        ("darkness", 1596, "D:5 AA:15 R:7 K:7 N:4 AH:10 S:28"),
    ),
    (
        ("it", 1754, "IH:7 T:3"),
        ("was", 1764, "W:7 AH:4 Z:9"),
        ("the", 1784, "DH:3 AH:3"),
        ("spring", 1790, "S:14 P:7 R:4 IH:3 NG:5"),
        ("of", 1823, "AH:5 V:7"),
        ("hope", 1835, "HH:8 OW:19 P:17"),
    ),
    (
        ("it", 1895, "IH:9 T:5"),
        ("was", 1909, "W:5 AH:3 Z:9"),
        ("the", 1926, "DH:3 AH:4"),
        ("winter", 1933, "W:11 IH:4 N:7 T:8 ER:10"),
        ("of", 1973, "AH:3 V:9"),
        ("despair", 1985, "D:5 IH:4 S:12 P:7 EH:24 R:7"),
    ),
    (
        ("we", 2123, "W:6 IY:4"),
        ("had", 2133, "HH:3 AE:7 D:8"),
        ("everything", 2151, "EH:9 V:7 R:3 IY:5 TH:7 IH:4 NG:9"),
        ("before", 2195, "B:4 IH:3 F:13 AO:14 R:3"),
        ("us", 2232, "AH:6 S:25"),
        ("we", 2263, "W:15 IY:3"),
        ("had", 2281, "HH:3 AE:6 D:7"),
        ("nothing", 2297, "N:9 AH:5 TH:11 IH:4 NG:8"),
        ("before", 2334, "B:3 IH:4 F:12 AO:12 R:3"),
        ("us", 2368, "AH:9 S:27"),
    ),
    (
        ("we", 2463, "W:6 IY:3"),
        ("were", 2472, "W:10 ER:3"),
        ("all", 2485, "AO:3 L:8"),
        ("going", 2496, "G:5 OW:9 IH:5 N:6"),
        ("direct", 2521, "D:6 ER:7 EH:8 K:6 T:3"),
        ("to", 2551, "T:5 AH:3"),
        ("heaven", 2559, "HH:10 EH:7 V:8 AH:3 N:11"),
    ),
    (
        ("we", 2654, "W:9 IY:3"),
        ("were", 2666, "W:8 ER:3"),
        ("all", 2677, "AO:9 L:10"),
        ("going", 2696, "G:7 OW:10 IH:4 N:7"),
        ("direct", 2724, "D:7 ER:8 EH:11 K:8 T:6"),
        ("the", 2764, "DH:4 IY:9"),
        ("other", 2777, "AH:8 DH:5 ER:3"),
        ("way", 2793, "W:13 EY:19"),
    ),
    (
        ("in", 2908, "IH:7 N:7"),
        ("short", 2922, "SH:14 AO:19 R:5 T:4"),
    ),
    (
        ("the", 2990, "DH:5 AH:4"),
        ("period", 2999, "P:11 IH:9 R:5 IY:5 AH:6 D:5"),
        ("was", 3040, "W:7 AH:3 Z:4"),
        ("so", 3054, "S:13 OW:10"),
        ("far", 3077, "F:16 AA:15 R:3"),
        ("like", 3111, "L:8 AY:10 K:7"),
        ("the", 3136, "DH:3 AH:4"),
        ("present", 3143, "P:11 R:4 EH:4 Z:6 AH:4 N:4 T:8"),
        ("period", 3184, "P:5 IH:9 R:8 IY:8 AH:6 D:8"),
    ),
    (
        ("that", 3274, "DH:5 AH:5 T:3"),
        ("some", 3287, "S:10 AH:5 M:4"),
        ("of", 3306, "AH:4 V:7"),
        ("its", 3317, "IH:6 T:5 S:8"),
        ("noisiest", 3336, "N:9 OY:18 Z:11 IY:5 AH:4 S:11 T:5"),
        ("authorities", 3399, "AH:8 TH:10 AO:12 R:3 AH:3 T:10 IY:14 Z:9"),
        ("insisted", 3468, "IH:3 N:7 S:10 IH:5 S:8 T:7 AH:4 D:11"),
        ("on", 3523, "AO:20 N:7"),
        ("its", 3550, "IH:8 T:8 S:6"),
        ("being", 3572, "B:10 IY:6 IH:3 NG:9"),
        ("received", 3600, "R:3 IH:3 S:16 IY:23 V:6 D:9"),
    ),
)
"""Phrases of (word, start in 1/100 s, "PHONE:length in 1/100 s ..." in ARPABET), on the recording's clock."""

PASSAGES: tuple[tuple[int, int], ...] = ((0, 4), (4, 8), (8, 11), (11, 14))
"""First phrase of each passage, and one past its last; the recording pauses between passages."""
