/**
 * Permission violations: what the broker refuses this connection the right to.
 *
 * The broker says when it refuses something, and not when it would no longer. So a violation counts until it was not repeated
 * for longer than it takes until it must be. What keeps asking: a consumer that is lost is recovered, and pulled from again;
 * events, dead letters and what is parked are published again until they are confirmed; the state of the broker is asked
 * for every few seconds; and what could not be acknowledged is delivered again, and acknowledged then.
 */
import type { PermissionViolationError } from "@nats-io/transport-node"
import { type Operation, untroubled } from "./Broker.ts"
import { streamName } from "./provision.ts"

/** Everything but an acknowledgement is tried again within seven seconds; that one comes with the redelivery. */
const countsMillis = { acknowledge: 60_000, other: 15_000 }

/** Most violations that are remembered one by one: a worker of 128 shards has about so many subjects. */
const rememberedMax = 1_024

export interface Violation {
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
  readonly reserveTopic: string
}

const operationOf = (
  { operation, subject }: PermissionViolationError,
  { deadTopic, parkedTopic, reserveTopic, responseTopic }: PublishedTopics,
): Operation => {
  // Without it a full store is found out later, and what the account may store is learnt when it is.
  const isReserve = subject.startsWith(`${reserveTopic}.`) || subject.endsWith(`.${streamName(reserveTopic)}`)
  if (isReserve || subject.endsWith("$JS.API.INFO")) return "reserve"
  if (operation === "subscription") return "receive"
  if (subject.startsWith("$JS.ACK.")) return "acknowledge"
  // With a domain there is more between the two.
  if (subject.startsWith("$JS.")) return subject.includes(".CONSUMER.MSG.NEXT.") ? "pull" : "request"
  if (subject === responseTopic) return "event"
  if (subject.startsWith(`${deadTopic}.`)) return "dead letter"
  return subject.startsWith(`${parkedTopic}.`) ? "park" : "copy"
}

export class Violations {
  readonly #topics: PublishedTopics
  readonly #remembered = new Map<string, Violation>()
  readonly counts = { ...untroubled.violations }

  constructor(topics: PublishedTopics) {
    this.#topics = topics
  }

  /** Takes one in; gives it where it is news: the first of its subject, or the first after it was gone. */
  note(error: PermissionViolationError, now: number): Violation | undefined {
    const operation = operationOf(error, this.#topics)
    this.counts[operation]++
    // Subjects without number, or of no account one by one: each message's own acknowledgement, inboxes, and what requests name as their `reply_to`.
    const several = ["acknowledge", "receive", "copy", "reserve"].includes(operation)
    const key = several ? operation : error.subject
    const known = this.#remembered.get(key)
    if (known !== undefined && this.#counts(known, now)) {
      known.at = now
      return undefined
    }
    const violation = { operation, text: error.message, at: now }
    this.#remembered.delete(key)
    if (this.#remembered.size >= rememberedMax) this.#remembered.delete(this.#remembered.keys().next().value!)
    this.#remembered.set(key, violation)
    return violation
  }

  /** Those that still count: of each operation the first, and how many more there are. */
  current(now: number): ReadonlyArray<Pick<Violation, "operation" | "text"> & { readonly more: number }> {
    const current = [...this.#remembered.values()].filter((violation) => this.#counts(violation, now))
    return Array.from(
      Map.groupBy(current, ({ operation }) => operation),
      ([operation, all]) => ({
        operation,
        text: all[0]!.text,
        more: all.length - 1,
      }),
    )
  }

  #counts({ at, operation }: Violation, now: number): boolean {
    return now - at < (operation === "acknowledge" ? countsMillis.acknowledge : countsMillis.other)
  }
}
