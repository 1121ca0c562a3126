"""Writes plays.csv and songs.csv: a small log of a music player, the same on every machine."""

import csv
import random

random.seed(7)
GENRES, MOODS = ("rock", "jazz", "folk", "techno", "soul", "opera"), ("calm", "bright", "dark", "loud", "slow")
taste = {f"listener-{u:03d}": (random.choice(GENRES), random.choice(MOODS), random.choice("ABCD")) for u in range(300)}
songs = {}
for s in range(600):
    moods = random.sample(MOODS, random.randint(1, 3))
    songs[f"S{s:04d}"] = (random.choice(GENRES), moods, random.randint(90, 420), random.gauss(0, 1))
listeners, ids = list(taste), list(songs)
weights = [1 / (place + 5) ** 0.7 for place in range(len(ids))]
with open("plays.csv", "w", newline="") as file:
    out = csv.writer(file)
    out.writerow(["listener", "song", "played_at", "finished", "plan"])
    for row, song in enumerate(random.choices(ids, weights, k=90_000)):
        listener = random.choice(listeners)
        (genre, mood, plan), (song_genre, moods, _, quality) = taste[listener], songs[song]
        liking = 2.4 * (genre == song_genre) + 1.2 * (mood in moods) + 0.8 * quality - 1.1
        finished = int(random.random() < 1 / (1 + 2.718281828**-liking))
        time = f"2024-03-{1 + row // 3000:02d} {row % 3000 // 126:02d}:{row % 126 // 3:02d}:{row % 3 * 20:02d}"
        out.writerow([listener, song, time, finished, plan])
with open("songs.csv", "w", newline="") as file:
    out = csv.writer(file)
    out.writerow(["song", "genre", "moods", "seconds"])
    out.writerows([song, genre, "|".join(moods), seconds] for song, (genre, moods, seconds, _) in songs.items())
