/**
 * What the broker refuses this connection the right to.
 *
 * The broker says when it refuses something, and not when it would no longer. So a refusal counts until it was not repeated
 * for longer than it takes until it must be. What keeps asking: a consumer that is lost is recovered, and pulled from again;
 * events, dead letters and what is parked are published again until they are confirmed; the state of the broker is asked
 * for every few seconds; and what could not be acknowledged is delivered again, and acknowledged then.
 */
import type { PermissionViolationError } from "@nats-io/transport-node"
import { type Operation, untroubled } from "./Broker.ts"

/** Everything but an acknowledgement is tried again within seven seconds; that one comes with the redelivery. */
const countsMillis = { acknowledge: 60_000, other: 15_000 }

/** Most refusals that are remembered one by one. */
const rememberedMax = 64

export interface Refusal {
  readonly operation: Operation
  /** What the broker said. */
  readonly text: string
  at: number
}

/** The topics that a worker publishes to. */
export interface PublishedTopics {
  readonly responseTopic: string
  readonly deadTopic: string
  readonly parkedTopic: string
}

const operationOf = (
  { operation, subject }: PermissionViolationError,
  { deadTopic, parkedTopic, responseTopic }: PublishedTopics,
): Operation => {
  if (operation === "subscription") return "receive"
  if (subject.startsWith("$JS.ACK.")) return "acknowledge"
  // With a domain there is more between the two.
  if (subject.startsWith("$JS.")) return subject.includes(".CONSUMER.MSG.NEXT.") ? "pull" : "request"
  if (subject === responseTopic) return "event"
  if (subject.startsWith(`${deadTopic}.`)) return "dead letter"
  return subject.startsWith(`${parkedTopic}.`) ? "park" : "copy"
}

export class Refusals {
  readonly #topics: PublishedTopics
  readonly #refusals = new Map<string, Refusal>()
  readonly counts = { ...untroubled.refused }

  constructor(topics: PublishedTopics) {
    this.#topics = topics
  }

  /** Takes a refusal in; gives it where it is news: the first of its subject, or the first after it was gone. */
  note(violation: PermissionViolationError, now: number): Refusal | undefined {
    const operation = operationOf(violation, this.#topics)
    this.counts[operation]++
    // Subjects without number: each message's own acknowledgement, inboxes, and what requests name as their `reply_to`.
    const several = operation === "acknowledge" || operation === "receive" || operation === "copy"
    const key = several ? operation : violation.subject
    const known = this.#refusals.get(key)
    if (known !== undefined && this.#counts(known, now)) {
      known.at = now
      return undefined
    }
    const refusal = { operation, text: violation.message, at: now }
    this.#refusals.delete(key)
    if (this.#refusals.size >= rememberedMax) this.#refusals.delete(this.#refusals.keys().next().value!)
    this.#refusals.set(key, refusal)
    return refusal
  }

  /** Those that still count. */
  current(now: number): ReadonlyArray<Refusal> {
    return [...this.#refusals.values()].filter((refusal) => this.#counts(refusal, now))
  }

  #counts({ at, operation }: Refusal, now: number): boolean {
    return now - at < (operation === "acknowledge" ? countsMillis.acknowledge : countsMillis.other)
  }
}
