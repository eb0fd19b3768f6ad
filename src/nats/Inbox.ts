/**
 * Where answers and deliveries of the broker arrive: a subscription of its own, read by `Incoming`.
 *
 * A subscription that the broker refuses, or takes away when rights change, is gone for good, in the client library too.
 * Whoever uses the inbox hears of it, and opens it again with the next thing that is asked for.
 */
import { createInbox, type NatsConnection, type Subscription } from "@nats-io/transport-node"
import { type Incoming, type Receive, received } from "./Incoming.ts"

export class Inbox {
  /** What is asked for names a subject one token below this one for the answer. */
  readonly subject = createInbox()
  readonly #connection: NatsConnection
  readonly #incoming: Incoming
  readonly #receive: Receive
  readonly #refused: (text: string) => void
  #subscription: Subscription | undefined

  constructor(connection: NatsConnection, incoming: Incoming, receive: Receive, refused: (text: string) => void) {
    this.#connection = connection
    this.#incoming = incoming
    this.#receive = receive
    this.#refused = refused
  }

  /** Sees to it that something can arrive. */
  open(): void {
    if (this.#subscription !== undefined) return
    const subscription = this.#connection.subscribe(`${this.subject}.*`, {
      callback: (error, message) => {
        if (this.#subscription !== subscription) return
        if (error === null) return this.#receive(...received(message))
        this.#forget()
        this.#refused(error.message)
      },
    })
    this.#subscription = subscription
    this.#incoming.listen(subscription, this.#receive)
  }

  /** Takes what is on its way, and then nothing more. */
  async drain(): Promise<void> {
    await this.#subscription?.drain().catch(() => undefined)
    this.#forget()
  }

  close(): void {
    this.#subscription?.unsubscribe()
    this.#forget()
  }

  #forget(): void {
    if (this.#subscription !== undefined) this.#incoming.forget(this.#subscription)
    this.#subscription = undefined
  }
}
