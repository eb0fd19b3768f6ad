/**
 * Which life of a stream a delivery is from.
 *
 * A stream that is deleted and made again counts from 1 anew, and acknowledgements name a message by stream and sequence
 * number alone: one for the stream that is gone would settle another message of its successor, which would then be lost
 * with the worker that holds it. So after every break it is first made sure that the stream is the same; what is to be
 * settled waits until then, and is dropped if it is another.
 */
import type { Outgoing } from "./Outgoing.ts"

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
  readonly #isConnected: () => boolean
  readonly #outgoing: Outgoing

  constructor(found: FoundStream, isConnected: () => boolean, outgoing: Outgoing) {
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
    if (this.#life.state === "sure") this.#life.state = "unsure"
  }

  /** Tells which stream is there now; whether it is the one of before. */
  confirm(found: FoundStream): boolean {
    const isSame = found.created === this.#found.created && found.name === this.#found.name
    const life = this.#life
    if (isSame) {
      life.state = "sure"
      for (const [reply, answer] of life.held.splice(0)) this.#outgoing.answer(reply, answer)
    } else {
      life.state = "over"
      life.held.length = 0
      this.#life = new Life()
    }
    this.#found = found
    return isSame
  }
}
