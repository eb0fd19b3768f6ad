/**
 * What a stream that exists may be. Nobody changes one that somebody else made: either it keeps our promises, or it is not
 * used at all. Every field of a stream's configuration, of nats-server 2.9 to 2.15, is in the rules below or in the list of
 * what does no harm.
 */
import { DiscardPolicy, RetentionPolicy, StorageType, type StreamConfig } from "@nats-io/jetstream"

export const purgedParts = ["logs", "query", "parked"] as const

export const streamRoles = [...purgedParts, "response", "dead"] as const

/** What a stream is to us. */
export type StreamRole = (typeof streamRoles)[number]

/** Streams with requests, from which is purged what is done. */
export type PurgedRole = (typeof purgedParts)[number]

/** What each stream has to capture, and no more where we purge it. */
export type StreamSubjects = Record<StreamRole, ReadonlyArray<string>>

/** Whether every subject that `inner` matches is matched by `outer`. */
const covers = (outer: string, inner: string): boolean => {
  const [out, inn] = [outer.split("."), inner.split(".")]
  for (let i = 0; i < out.length; i++) {
    if (out[i] === ">") return inn.length > i
    if (inn[i] === undefined || inn[i] === ">") return false
    if (out[i] !== "*" && out[i] !== inn[i]) return false
  }
  return out.length === inn.length
}

const nanosOf = { second: 1e9, day: 86_400e9 }

const foreignIn = (config: StreamConfig, own: ReadonlyArray<string>): ReadonlyArray<string> =>
  config.subjects.filter((captured) => !own.some((subject) => covers(subject, captured)))

/** Whether the stream holds nothing but messages on our subjects, so that the oldest of them may be purged. */
export const isOursAlone = (config: StreamConfig, own: ReadonlyArray<string>): boolean =>
  foreignIn(config, own).length === 0 && (config.sources ?? []).length === 0 && !config.deny_purge

/** What is stored here goes away when we, or the operator, are done with it, and never before. */
const kept: ReadonlyArray<StreamRole> = [...purgedParts, "dead"]
/** Workers write here. Publishers elsewhere hear of a refusal, and can act on it. */
const written: ReadonlyArray<StreamRole> = ["parked", "response", "dead"]

interface Rule {
  readonly parts: ReadonlyArray<StreamRole>
  /** What is wrong, if that rule is broken, and what to do. */
  readonly problem: (config: StreamConfig, own: ReadonlyArray<string>, role: StreamRole) => string | undefined
}

const rule = (parts: ReadonlyArray<StreamRole>, problem: Rule["problem"]): Rule => ({ parts, problem })

/** A limit by which the server drops what is oldest. One by which it refuses what is new loses nothing. */
const drops = (config: StreamConfig, field: "max_msgs" | "max_bytes"): string | undefined =>
  config[field] > 0 && config.discard !== DiscardPolicy.New
    ? `${field} ${config[field]} drops what is not done yet: remove it, or set discard to new`
    : undefined

const rules: ReadonlyArray<Rule> = [
  rule(streamRoles, ({ subjects }, [subject]) =>
    subjects.some((captured) => covers(captured, subject!))
      ? undefined
      : `expected it to capture ${subject}, got ${subjects.join(", ")}`,
  ),
  rule(purgedParts, (config, own) => {
    const foreign = foreignIn(config, own)
    return foreign.length === 0
      ? undefined
      : `captures ${foreign.join(", ")} beside ${own.join(", ")}, and what is done is purged from it: give ${own.join(", ")} a stream of its own, or choose another topic`
  }),
  // From a mirror or sources come messages that nobody published to us, on whatever subject.
  rule(purgedParts, ({ mirror, sources = [] }) =>
    mirror === undefined && sources.length === 0
      ? undefined
      : `is fed from ${[mirror, ...sources].flatMap((source) => source?.name ?? []).join(", ")}, and what is done is purged from it: expected no mirror and no sources`,
  ),
  rule(streamRoles, ({ sealed }) => (sealed ? "is sealed, so nothing can be stored in it" : undefined)),
  rule(streamRoles, ({ no_ack }) =>
    no_ack === true ? "has no_ack set, so publishing to it can't be confirmed" : undefined,
  ),
  rule(streamRoles, ({ retention }) =>
    retention === RetentionPolicy.Limits ? undefined : `expected retention by limits, got ${retention}`,
  ),
  rule(kept, ({ storage }) =>
    storage === StorageType.File ? undefined : `expected storage in files, got ${storage}: a restart would empty it`,
  ),
  // Answered before it is on its way to the disk: a server that is killed would forget what it confirmed.
  rule(kept, ({ persist_mode }) =>
    String(persist_mode ?? "default") === "default" ? undefined : `expected persist_mode default, got ${persist_mode}`,
  ),
  rule(purgedParts, ({ max_age }) =>
    max_age > 0 ? `max_age ${max_age / nanosOf.second} s drops what is not done yet: remove it` : undefined,
  ),
  rule(["dead"], ({ max_age }) =>
    max_age > 0 && max_age < nanosOf.day
      ? `max_age ${max_age / nanosOf.second} s: refused requests are to be seen, so a day at least, or none`
      : undefined,
  ),
  rule(kept, (config) => drops(config, "max_msgs") ?? drops(config, "max_bytes")),
  // Under discard new too the server drops the oldest of a subject, unless it is told otherwise.
  rule(kept, ({ discard, discard_new_per_subject, max_msgs_per_subject }) =>
    max_msgs_per_subject > 0 && !(discard === DiscardPolicy.New && discard_new_per_subject)
      ? `max_msgs_per_subject ${max_msgs_per_subject} drops what is not done yet: remove it`
      : undefined,
  ),
  rule(["response"], ({ discard, max_bytes, max_msgs }) =>
    discard === DiscardPolicy.New && (max_msgs > 0 || max_bytes > 0)
      ? "has a limit and discard new, so that no event is stored once it is full: set discard to old"
      : undefined,
  ),
  rule(written, ({ max_msg_size }, _, role) =>
    max_msg_size > 0
      ? `max_msg_size ${max_msg_size}: what a worker stores in the ${role} stream may be as large as max_payload, so remove it`
      : undefined,
  ),
  rule(purgedParts, ({ deny_purge }) => (deny_purge ? "has deny_purge set, so it would grow without end" : undefined)),
  rule(streamRoles, ({ subject_transform }) =>
    subject_transform === undefined
      ? undefined
      : `stores messages on other subjects (${subject_transform.src} to ${subject_transform.dest}), where nobody looks for them: remove subject_transform`,
  ),
  rule(kept, ({ allow_rollup_hdrs }) =>
    allow_rollup_hdrs ? "has allow_rollup_hdrs set: one message's header would delete all others" : undefined,
  ),
  rule(purgedParts, ({ allow_msg_ttl }) =>
    allow_msg_ttl === true ? "has allow_msg_ttl set: a request might go before it is done" : undefined,
  ),
  rule(streamRoles, ({ allow_msg_counter }) =>
    allow_msg_counter === true ? "is a counter (allow_msg_counter), which takes nothing else" : undefined,
  ),
  rule(purgedParts, ({ allow_msg_schedules }) =>
    allow_msg_schedules === true ? "has allow_msg_schedules set: a schedule would be taken for a request" : undefined,
  ),
  // What the server would give to each new consumer; what the consumers need is in consumerRules.ts.
  rule(purgedParts, ({ consumer_limits: { inactive_threshold = 0, max_ack_pending = 0 } = {} }) =>
    inactive_threshold > 0 || max_ack_pending > 0
      ? "has consumer_limits, which the workers' consumers can't keep: remove them"
      : undefined,
  ),
  /*
   * No harm, whatever it is: name, description, metadata, template_owner, placement, compression, first_seq, allow_direct,
   * mirror_direct, republish (copies elsewhere), deny_delete (`dead drop` says so), discard new without a limit,
   * allow_atomic and allow_batched (a publisher's way to be confirmed), max_msg_size in the intakes (the publisher hears
   * it), max_consumers (said when a consumer can't be made), subject_delete_marker_ttl (the server sets allow_msg_ttl too).
   * For the response stream also whatever drops old events, storage in memory, and other subjects: it is then not purged
   * by us. For num_replicas and duplicate_window see `streamRemarks`.
   */
]

/** Why an existing stream can't serve, if it can't, and what to do. */
export const streamProblem = (role: StreamRole, config: StreamConfig, subjects: StreamSubjects): string | undefined => {
  for (const { parts, problem } of rules) {
    const found = parts.includes(role) ? problem(config, subjects[role], role) : undefined
    if (found !== undefined) return found
  }
  return undefined
}

/** Up to this a retry that the server drops is no news to the publisher; ours have 100 ms. */
const duplicateWindowMax = nanosOf.second

/** What an operator should know of an existing stream, although it can serve. */
export const streamRemarks = (role: StreamRole, config: StreamConfig, replicas: number): ReadonlyArray<string> => {
  const remarks: Array<string> = []
  if (config.num_replicas < replicas) remarks.push(`has ${config.num_replicas} of the ${replicas} replicas asked for`)
  if ((role === "logs" || role === "query") && config.duplicate_window > duplicateWindowMax) {
    remarks.push(
      `drops what repeats a Nats-Msg-Id within ${config.duplicate_window / nanosOf.second} s, also for another object, and that gets no event: set duplicate_window to 100 ms`,
    )
  }
  return remarks
}
