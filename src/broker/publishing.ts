/** What the broker adds to the wire's publisher: the headers of an event, and a failure in its own words. */
import { blockText, type HeaderBlock, idBlock } from "../nats/headers.ts"
import type { PublishFailed } from "../nats/publish.ts"
import type { TraceHeaders } from "../trace/traceContext.ts"
import { BrokerUnavailable } from "./Broker.ts"

export const publishFailed = ({ cause }: PublishFailed): BrokerUnavailable =>
  new BrokerUnavailable({ operation: "publish", cause })

/** Headers of an event: a message id for the broker's deduplication, and the trace where there is one. */
export const eventHeaders = (messageId: string, trace: TraceHeaders | undefined): HeaderBlock => {
  if (trace === undefined) return idBlock(messageId)
  const { traceparent, tracestate } = trace
  const id = ["Nats-Msg-Id", messageId] as const
  const parent = ["traceparent", traceparent] as const
  return blockText(tracestate === undefined ? [id, parent] : [id, parent, ["tracestate", tracestate]])
}
