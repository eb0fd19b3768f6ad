/** How much the consumers of a stream bring to this process: what tells when its upkeep is due, and how large messages are. */
import { Latch } from "effect"

/** A quarter of the margin that is kept of what is done, in bytes: then a part of it may go. */
const dueBytes = 16 * 1024 ** 2

export class Volume {
  #messages = 0
  #bytes = 0
  #mean = 0
  /** Open once so much has come that there is something to purge. */
  readonly due = Latch.makeUnsafe(false)

  /** Bytes, or code units of a text: at least a third of its bytes. */
  add(messages: number, bytes: number): void {
    this.#messages += messages
    this.#bytes += bytes
    if (this.#bytes >= dueBytes) this.due.openUnsafe()
  }

  /** Begins anew; gives the mean size of what came since the last time that something came. */
  settle(): number {
    if (this.#messages > 0) this.#mean = this.#bytes / this.#messages
    this.#messages = this.#bytes = 0
    this.due.closeUnsafe()
    return this.#mean
  }
}
