/** What a seed decides about a run as a whole: its size, its weather, its accidents. */
import { makeAccidents, makeWeather } from "./faults.ts"
import { Prng } from "./Prng.ts"

export const hourMillis = 3_600_000

/** Most runs are a bit of everything; the others go where such a run seldom gets. */
export type Kind =
  | "ordinary"
  /** A shard is down for hours. */
  | "hours"
  /** More appends of a shard that is down than its lanes hold: they are parked. */
  | "flood"
  /** Reads that take several fetches. */
  | "large entries"
  /** A slow broker that loses signs of life: several workers serve the same read. */
  | "contended reads"

export const kindOf = (seed: number): Kind => {
  const number = new Prng(seed, 4).below(100)
  if (number < 3) return "hours"
  if (number < 6) return "flood"
  if (number < 7) return "large entries"
  return number < 12 ? "contended reads" : "ordinary"
}

/** What a seed decides about a run as a whole. */
export const makePlan = (seed: number) => {
  const prng = new Prng(seed)
  const kind = kindOf(seed)
  const accidents = makeAccidents(prng)
  const weather = makeWeather(prng)
  const objects = Array.from({ length: prng.between(1, 6) }, () =>
    prng.chance(0.2) ? 2n ** 64n - 1n - BigInt(prng.below(1_000)) : BigInt(prng.below(100_000)),
  )
  const plan = {
    kind,
    accidents,
    weather,
    shardCount: prng.between(1, 3),
    objects: [...new Set(objects)],
    workers: prng.between(1, 4),
    publishers: prng.between(1, 4),
    appends: prng.between(3, 25),
    largest: 400,
    wholeReads: false,
    readers: prng.between(0, 3),
    reads: prng.between(1, 8),
    gapMillis: prng.pick([0, 10, 300, 2_000]),
    maxPayload: prng.pick([2_700, 3_500, 65_536]),
    pullMost: prng.pick([1, 5, 50, 1_000]),
    operationsMean: prng.pick([3, 10, 50, 500]),
    activeMillis: prng.between(20_000, 200_000),
  }
  switch (kind) {
    case "ordinary":
      return plan
    case "hours":
      return {
        ...plan,
        workers: prng.between(1, 2),
        gapMillis: prng.between(100_000, 400_000),
        activeMillis: prng.between(2, 3) * hourMillis,
      }
    case "flood":
      return {
        ...plan,
        weather: { ...weather, eventLost: 0.1, eventConfirmationLost: 0.3 },
        accidents: { ...accidents, kills: prng.below(3), outages: 0 },
        shardCount: prng.between(2, 3),
        workers: prng.between(1, 2),
        pullMost: 1_000,
        operationsMean: 500,
      }
    case "large entries":
      return {
        ...plan,
        weather: { ...weather, lateDelivery: 0.5, slowStatement: 0.4, statementMillis: 100 },
        objects: plan.objects.slice(0, 1),
        publishers: 3,
        appends: 5,
        largest: 500_000,
        wholeReads: true,
        readers: 3,
        reads: 4,
        gapMillis: 1_000,
        pullMost: 1,
        maxPayload: 1_000_000,
      }
    case "contended reads":
      return {
        ...plan,
        weather: { ...weather, signLost: 0.9, brokerMillis: 20_000, eventLost: 0, lateDelivery: 0 },
        accidents: { ...accidents, kills: 0, brokerRestarts: 0, connectionLosses: 0 },
        objects: plan.objects.slice(0, 1),
        workers: prng.between(2, 4),
        publishers: 4,
        appends: 8,
        wholeReads: true,
        readers: 3,
        reads: 4,
        gapMillis: 2_000,
        largest: 150_000,
        maxPayload: 200_000,
        activeMillis: 400_000,
      }
  }
}

export type Plan = ReturnType<typeof makePlan>
