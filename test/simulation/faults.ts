/** The classes of faults, and how strongly a seed applies each. */
import type { Prng } from "./Prng.ts"

/** What the coverage table lists: every way in which a run departs from the good case. */
export const faultClasses = [
  "deliveries out of order",
  "delivery late",
  "delivered again after ack_wait",
  "acknowledgement lost",
  "sign of life lost",
  "hand-back lost",
  "event lost",
  "event stored, confirmation lost",
  "dead letter stored, confirmation lost",
  "parked, confirmation lost",
  "append parked",
  "read parked",
  "parked message dropped as a duplicate",
  "broker connection lost",
  "broker restarted",
  "acknowledgement forgotten by the broker",
  "delivery forgotten by the broker",
  "broker clock set back",
  "worker clock skewed",
  "publisher's confirmation lost",
  "duplicate dropped by the broker",
  "duplicate stored by the broker",
  "worker killed",
  "worker killed, open transaction committed",
  "worker killed, open transaction rolled back",
  "worker stopped",
  "worker frozen beyond ack_wait",
  "shard connection lost",
  "shard connection lost before commit",
  "shard connection lost after commit",
  "vanished session keeps its locks",
  "deadlock",
  "serialisation failure",
  "waited for a row lock",
  "shard slow",
  "shard down for a while",
  "shard down for hours",
  "poison entry",
  "malformed append",
  "malformed read",
] as const

export type FaultClass = (typeof faultClasses)[number]

/** How often each class struck. */
export class Coverage {
  readonly #counts = new Map<FaultClass, number>(faultClasses.map((name) => [name, 0]))

  strike(name: FaultClass, times = 1): void {
    this.#counts.set(name, this.#counts.get(name)! + times)
  }

  add(other: Coverage): void {
    for (const name of faultClasses) this.strike(name, other.of(name))
  }

  of(name: FaultClass): number {
    return this.#counts.get(name)!
  }
}

/** Probabilities of what can happen at any moment; all are 0 once a run heals. */
export interface Weather {
  readonly reorder: number
  readonly lateDelivery: number
  readonly ackLost: number
  readonly signLost: number
  readonly handBackLost: number
  readonly eventLost: number
  readonly eventConfirmationLost: number
  readonly publishConfirmationLost: number
  readonly ackForgotten: number
  readonly connectionLost: number
  readonly commitLost: number
  readonly keepsLocks: number
  readonly deadlock: number
  readonly serialisation: number
  readonly slowStatement: number
  /** Longest latency in the ordinary case, of a frame to or from the broker and of a statement, in milliseconds. */
  readonly brokerMillis: number
  readonly statementMillis: number
}

export const calm: Weather = {
  reorder: 0,
  lateDelivery: 0,
  ackLost: 0,
  signLost: 0,
  handBackLost: 0,
  eventLost: 0,
  eventConfirmationLost: 0,
  publishConfirmationLost: 0,
  ackForgotten: 0,
  connectionLost: 0,
  commitLost: 0,
  keepsLocks: 0,
  deadlock: 0,
  serialisation: 0,
  slowStatement: 0,
  brokerMillis: 3,
  statementMillis: 3,
}

/** Events that strike the whole run at a moment of their own, as a mean number for each run. */
export interface Accidents {
  readonly kills: number
  readonly stops: number
  readonly freezes: number
  readonly connectionLosses: number
  readonly brokerRestarts: number
  readonly clockSetBacks: number
  readonly outages: number
}

/** About half of the classes are on in a run: faults that are on all the time would hide what a few together do. */
export const makeWeather = (prng: Prng): Weather => {
  const rate = (most: number) => (prng.chance(0.5) ? most * prng.unit() : 0)
  return {
    reorder: rate(0.5),
    lateDelivery: rate(0.05),
    ackLost: rate(0.3),
    signLost: rate(0.3),
    handBackLost: rate(0.3),
    eventLost: rate(0.2),
    eventConfirmationLost: rate(0.2),
    publishConfirmationLost: rate(0.2),
    ackForgotten: rate(0.8),
    connectionLost: rate(0.05),
    commitLost: rate(0.2),
    keepsLocks: rate(0.5),
    deadlock: rate(0.1),
    serialisation: rate(0.1),
    slowStatement: rate(0.05),
    brokerMillis: prng.pick([0, 2, 5, 20, 100]),
    statementMillis: prng.pick([0, 2, 5, 20, 100]),
  }
}

export const makeAccidents = (prng: Prng): Accidents => {
  const some = (probability: number, most: number) => (prng.chance(probability) ? prng.between(1, most) : 0)
  return {
    kills: some(0.6, 4),
    stops: some(0.3, 2),
    freezes: some(0.3, 2),
    connectionLosses: some(0.4, 4),
    brokerRestarts: some(0.3, 2),
    clockSetBacks: some(0.25, 2),
    outages: some(0.4, 2),
  }
}
