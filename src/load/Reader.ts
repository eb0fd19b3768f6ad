/**
 * Reads logs through the service: one request each, its pages told apart by the request id.
 *
 * A request may be delivered again although it was answered (the broker lost the acknowledgement), after an outage even
 * much later. Then it is answered with another snapshot, which has what was appended meanwhile. That belongs to the next
 * read: a read that has ended takes nothing more.
 */
import type { NatsConnection } from "@nats-io/transport-node"
import { Effect, Schema } from "effect"
import { PageMerge, orderOf } from "../client/PageMerge.ts"
import { encodeReadRequest } from "../contract/Request.ts"
import type { Read } from "../contract/Request.ts"
import type { Entry, PageEvent, RefusedEvent } from "../contract/Event.ts"
import type { Answering } from "./events.ts"

/** No page came for the time that a read may take. */
export class ReadUnanswered extends Schema.TaggedError<ReadUnanswered>()("ReadUnanswered", {
  object: Schema.String,
  reason: Schema.String,
}) {
  override get message(): string {
    return `a read of object ${this.object} ${this.reason}`
  }
}

interface Reading {
  readonly receive: (event: Answering<PageEvent> | Answering<RefusedEvent>) => void
}

/** What it needs of a connection. */
type Connection = Pick<NatsConnection, "isClosed" | "publish">

export class Reader {
  readonly #connection: Connection
  readonly #topic: string
  readonly #prefix: string
  readonly #readings = new Map<string, Reading>()
  #requests = 0

  /** Request ids begin with `prefix`. */
  constructor(connection: Connection, topic: string, prefix: string) {
    this.#connection = connection
    this.#topic = topic
    this.#prefix = prefix
  }

  receive(event: Answering<PageEvent> | Answering<RefusedEvent>): boolean {
    const reading = this.#readings.get(event.requestId)
    reading?.receive(event)
    return event.requestId.startsWith(this.#prefix)
  }

  /**
   * Reads once; entries are handed on as their pages come, each once. Gives the cursor where `limit` cut the read short.
   * Fails when no page comes for `silenceMillis`: the request, a page or the worker may be lost.
   */
  read(
    read: Read,
    silenceMillis: number,
    take: (entries: ReadonlyArray<Entry>) => void,
  ): Effect.Effect<string | undefined, ReadUnanswered> {
    let heard = 0
    const answered = Effect.callback<string | undefined, ReadUnanswered>((resume) => {
      const requestId = `${this.#prefix}${(this.#requests++).toString(36)}`
      const merge = new PageMerge(orderOf(read))
      const forget = () => this.#readings.delete(requestId)
      // What is returned below runs on interruption only.
      const end = (outcome: Effect.Effect<string | undefined, ReadUnanswered>) => {
        forget()
        resume(outcome)
      }
      this.#readings.set(requestId, {
        receive: (event) => {
          heard += 1
          if (event.type === "refused") {
            const reason = `was refused: ${event.code}: ${event.reason}`
            return end(Effect.fail(new ReadUnanswered({ object: String(read.id), reason })))
          }
          const page = merge.accept(event)
          if (page === undefined) return
          take(page.entries)
          if (page.last) end(Effect.succeed(page.next))
        },
      })
      if (!this.#connection.isClosed()) this.#connection.publish(this.#topic, encodeReadRequest(read, requestId))
      return Effect.sync(forget)
    })
    const silent = Effect.gen(function* () {
      for (let before = -1; before !== heard;) {
        before = heard
        yield* Effect.sleep(silenceMillis)
      }
      return yield* new ReadUnanswered({
        object: String(read.id),
        reason: `was not answered within ${silenceMillis / 1_000} s`,
      })
    })
    return Effect.raceFirst(answered, silent)
  }
}
