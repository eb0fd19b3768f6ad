/** What both floors need of JetStream: the messages of the shared consumer, in chunks, and their acknowledgement. */
import { createInbox, type Msg, type NatsConnection } from "@nats-io/transport-node"

export interface Pull {
  /** Says that so many messages are done, which makes room for as many new ones. */
  readonly done: (count: number) => void
}

/** Keeps up to `window` messages asked for or in hand; `receive` gets them one by one. */
export const pull = (connection: NatsConnection, window: number, receive: (message: Msg) => void): Pull => {
  const inbox = createInbox()
  let open = 0
  let inHand = 0
  const request = () => {
    const batch = window - open - inHand
    if (batch < window / 4) return
    open += batch
    const body = JSON.stringify({ batch, expires: 600_000_000_000 })
    connection.publish("$JS.API.CONSUMER.MSG.NEXT.objectlog_logs.objectlog", body, { reply: inbox })
  }
  connection.subscribe(inbox, {
    callback: (_, message) => {
      if (message.reply === undefined || message.reply === "") return
      open--
      inHand++
      receive(message)
    },
  })
  request()
  return {
    done: (count) => {
      inHand -= count
      request()
    },
  }
}
