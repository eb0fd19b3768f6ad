/**
 * Which life of a stream a delivery is from.
 *
 * A stream that is deleted and made again counts from 1 anew, and acknowledgements name a message by stream and sequence
 * number alone: one for the stream that is gone would settle another message of its successor, which would then be lost
 * with the worker that holds it. So after every break the stream is asked for first; what is to be settled waits until then,
 * and is dropped if it is another.
 *
 * The stream is asked for by itself, whatever becomes of its consumers: one that can't be recovered holds up nobody. While a
 * stream is in doubt nothing is pulled from it, so that no more can wait than the worker held when the doubt began.
 */
import { Effect, Latch } from "effect"
import type { Outgoing } from "../nats/Outgoing.ts"

/** A stream that was found. `created` tells it from an earlier one of its name. */
export interface FoundStream {
  readonly name: string
  readonly created: string
}

/** One life. */
class Life {
  state: "sure" | "unsure" | "over" = "sure"
  /** Reply subjects and answers. */
  readonly held: Array<readonly [string, string]> = []
}

export type { Life }

export class StreamLives {
  #found: FoundStream
  #life = new Life()
  /** Counts the breaks: an answer to a question from before the last one says nothing. */
  #doubts = 0
  readonly #isConnected: () => boolean
  readonly #outgoing: Pick<Outgoing, "answer">
  readonly #sure = Latch.makeUnsafe(true)
  readonly #unsure = Latch.makeUnsafe(false)
  /** Called when it turns out that the stream is another one. */
  readonly onChange = new Set<() => void>()

  constructor(found: FoundStream, isConnected: () => boolean, outgoing: Pick<Outgoing, "answer">) {
    this.#found = found
    this.#isConnected = isConnected
    this.#outgoing = outgoing
  }

  get name(): string {
    return this.#found.name
  }

  /** The life that a delivery belongs to that arrives now. */
  get current(): Life {
    return this.#life
  }

  get isSure(): boolean {
    return this.#life.state === "sure"
  }

  /** Waits until it is known which stream is there. */
  get sure(): Effect.Effect<void> {
    return this.#sure.await
  }

  /** Settles a message, as soon as its stream is known to be the same. */
  settle(life: Life, reply: string, answer: string): void {
    if (life.state === "sure" && this.#isConnected()) this.#outgoing.answer(reply, answer)
    else if (life.state !== "over") life.held.push([reply, answer])
  }

  /** Says that a message is still worked on; not of importance enough to be held. */
  touch(life: Life, reply: string, answer: string): void {
    if (life.state === "sure" && this.#isConnected()) this.#outgoing.answer(reply, answer)
  }

  /** After a break: the stream may be another one. */
  doubt(): void {
    this.#doubts++
    this.#life.state = "unsure"
    this.#sure.closeUnsafe()
    this.#unsure.openUnsafe()
  }

  /** Finds out, after each break, with `ask`, which makes the stream again where it is missing. */
  keep(ask: Effect.Effect<FoundStream>): Effect.Effect<never> {
    return Effect.suspend(() =>
      Effect.andThen(
        this.#unsure.await,
        Effect.suspend(() => {
          const doubts = this.#doubts
          return Effect.map(ask, (found) => {
            if (doubts === this.#doubts) this.#confirm(found)
          })
        }),
      ),
    ).pipe(Effect.forever)
  }

  #confirm(found: FoundStream): void {
    const life = this.#life
    const isSame = found.created === this.#found.created && found.name === this.#found.name
    this.#found = found
    if (isSame) {
      life.state = "sure"
      for (const [reply, answer] of life.held.splice(0)) this.#outgoing.answer(reply, answer)
    } else {
      life.state = "over"
      life.held.length = 0
      this.#life = new Life()
    }
    this.#unsure.closeUnsafe()
    this.#sure.openUnsafe()
    if (!isSame) for (const listener of this.onChange) listener()
  }
}
