/**
 * What a consumer that exists may be: one that would skip or drop requests, or stall, is not pulled from. Every field of a
 * consumer's configuration, of nats-server 2.9 to 2.15, is in the rules below or in the list of what does no harm.
 */
import { AckPolicy, type ConsumerConfig, DeliverPolicy, ReplayPolicy } from "@nats-io/jetstream"
import type { PurgedRole } from "./streamRules.ts"

/**
 * What a worker held that is gone waits for so long. Below twenty seconds what is held is delivered again, since it is
 * reported every ten: work that is done twice, but for nothing lost. Below one second hardly anything else would happen.
 */
const ackWaitBounds = { least: 1_000, most: 300_000 }

/** Requests for messages that workers keep open on one consumer, two for each: a fleet that nobody has. */
const openRequests = 64

const nanos = 1_000_000

/** A durable pull consumer that all workers share. */
export interface ConsumerSpec {
  /** The stream that it is on. */
  readonly role: PurgedRole
  readonly name: string
  readonly filter: string
  /** Deliveries that may be under way or handed back at the same time, over all workers. */
  readonly ackPendingMax: number
}

/** Why an existing consumer can't serve, if it can't, and what to do. */
export const consumerProblem = (config: ConsumerConfig, filter: string): string | undefined => {
  const filters = config.filter_subjects ?? (config.filter_subject === undefined ? [] : [config.filter_subject])
  if (config.deliver_subject !== undefined) return "expected a pull consumer, got a push consumer"
  if (config.ack_policy !== AckPolicy.Explicit) return `expected explicit acknowledgement, got ${config.ack_policy}`
  if (config.deliver_policy !== DeliverPolicy.All) {
    return `expected delivery of all messages, got ${config.deliver_policy}, which skips some`
  }
  if ((config.max_deliver ?? -1) > 0) return `expected deliveries without limit, got ${config.max_deliver} at most`
  // Also where the stream has no other subject: a purge makes nats-server 2.9 forget all that is under way on a consumer
  // without a filter, as if it were done.
  if (filters.join() !== filter) return `expected the filter ${filter}, got ${filters.join(", ") || "none"}`
  if (config.headers_only === true) return "expected whole messages, got headers_only"
  if (config.replay_policy !== ReplayPolicy.Instant) {
    return `expected instant replay, got ${config.replay_policy}, which waits as long as the publishers did`
  }
  // A list of delays takes the place of `ack_wait`.
  if ((config.backoff ?? []).length > 0) return "expected one ack_wait, got a backoff"
  const ackWait = (config.ack_wait ?? 0) / nanos
  if (ackWait < ackWaitBounds.least || ackWait > ackWaitBounds.most) {
    return `expected ack_wait of ${ackWaitBounds.least / 1_000} … ${ackWaitBounds.most / 1_000} s, got ${ackWait / 1_000} s`
  }
  const waiting = config.max_waiting ?? 0
  if (waiting > 0 && waiting < openRequests) return `expected max_waiting ${openRequests} at least, got ${waiting}`
  // Deleted by the server while no worker runs, or forgotten at a restart: all that the stream holds would come again.
  if ((config.inactive_threshold ?? 0) > 0) return "expected no inactive_threshold: the server would delete it"
  if (config.mem_storage === true) return "expected storage in files, got mem_storage"
  if ((config.priority_groups ?? []).length > 0) return "expected no priority_groups"
  if (config.pause_until !== undefined && Date.parse(config.pause_until) > Date.now()) {
    return `is paused until ${config.pause_until}`
  }
  /*
   * No harm, whatever it is: names, description, metadata, sample_freq (advisories), num_replicas (a lost acknowledgement is
   * a redelivery), max_batch, max_bytes and max_expires (requests keep to them), max_ack_pending (slower, and said where the
   * server forces it on us), and what only push consumers have: flow_control, idle_heartbeat, deliver_group,
   * rate_limit_bps. Without delivery from the start there is no opt_start_seq or opt_start_time.
   */
  return undefined
}
