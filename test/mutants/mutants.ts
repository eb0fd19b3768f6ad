/**
 * Mistakes as somebody could make them: each is a piece of `src/` that stands once in its file, what it becomes, and the tests that
 * should notice. They aim at guards, limits, races and letters on their way; no typing mistakes that the compiler finds.
 */

export interface MutantGroup {
  readonly file: string
  /** Test files, or folders of them, the quick ones first. */
  readonly tests: ReadonlyArray<string>
  readonly changes: ReadonlyArray<readonly [from: string, to: string, reason?: string]>
}

const pipeline = ["test/pipeline"]
const contract = ["test/contract", "test/pipeline/Worker.test.ts"]

export const groups: ReadonlyArray<MutantGroup> = [
  {
    file: "broker/Intake.ts",
    tests: ["test/broker/Intake.test.ts"],
    changes: [
      ["const silenceMillis = 3 * heartbeatMillis", "const silenceMillis = 30 * heartbeatMillis"],
      ["const heldMillis = 10_000", "const heldMillis = 100_000"],
      ["for (const delivery of this.#all) delivery.working()", ""],
      ["for (const delivery of this.#all) delivery.retry(0)", ""],
      ["this.#since = now\n    for", "for"],
      ["await this.#inbox.drain()", ""],
      ['await connection.request(subject, "", { timeout: 1_000 }).catch(() => undefined)', ""],
      ['if (state._tag !== "Pulling" || number < state.firstRequest) return', 'if (state._tag !== "Pulling") return'],
      ["Math.max(0, state.open - status.pendingMessages)", "state.open"],
      ["status.pendingMessages === undefined ? 0 :", "status.pendingMessages === undefined ? state.open :"],
      ["if (!isOrdinaryEnd(status)) return this.#doubt(`${status.code} ${status.description}`)", ""],
      ["this.#options.stream.doubt()", ""],
      ["if (this.#state.reason !== undefined) this.#failures++", "this.#failures++"],
      ['if (state._tag === "Pulling") state.lastSign = now', ""],
      ["Math.min(this.#options.pull, state.limits.messages)", "this.#options.pull"],
      ["state.limits.bytes)", "Infinity)"],
      ["Math.min(expiresMillis, state.limits.millis)", "expiresMillis"],
      ["Math.min(heartbeatMillis, Math.floor(expires / 3))", "heartbeatMillis"],
      ["|| this.#held.bytes >= bytes", ""],
      ["!stream.isSure ||", ""],
      ["expected > 0 || this.#deliver === undefined", "this.#deliver === undefined"],
      ["expected > 0 || this.#deliver === undefined", "expected > 0"],
      ["const batch = pull - expected", "const batch = pull"],
      ['operation === "publish" && subject === this.#subject', 'operation === "publish"'],
    ],
  },
  {
    file: "broker/Recovery.ts",
    tests: ["test/broker/recovery.test.ts", "test/broker/accidents.test.ts", "test/broker/rights.test.ts"],
    changes: [
      [
        "if (isStreamNotFound(error)) stream.doubt()",
        "",
        "the stream was asked for just before: only one that is deleted within that moment gets here",
      ],
      ["limits.bytes < this.#maxPayload()", "false"],
      ["Date.now() - repair.at < repairPauseMillis", "false", "only how often a missing stream is asked for; open"],
    ],
  },
  {
    file: "broker/NatsDelivery.ts",
    tests: ["test/broker/NatsDelivery.test.ts", "test/broker/Intake.test.ts", "test/broker/NatsLive.test.ts"],
    changes: [
      ["Math.max(delayMillis, handBackMillis)", "delayMillis"],
      ["if (this.#settled) return\n", ""],
      ["if (!this.#settled) this.#streams.touch", "this.#streams.touch"],
      ["found?.origin.timestamp ?? timestamp", "timestamp"],
      ["found?.headers ?? headers", "headers"],
      ['if (typeof this.#payload === "string") this.#payload = ownText(this.#payload)', ""],
      ["2 * this.#payload.length", "0"],
    ],
  },
  {
    file: "nats/ackSubject.ts",
    tests: ["test/nats/ackSubject.test.ts"],
    changes: [
      ["count === dotsWithoutDomain ? 3 : 5", "3"],
      ["count > first + 5 ? dots[first + 5]! : subject.length", "subject.length"],
    ],
  },
  {
    file: "nats/Incoming.ts",
    tests: ["test/nats/Incoming.test.ts", "test/nats/Inbox.test.ts"],
    changes: [
      ["if (this.#filled < this.#needed) return\n", ""],
      ["Buffer.from(bytes)\n}", "bytes\n}"],
      ["|| isUtf8(bytes) ? text", "? text"],
      ["if (next > bytes.length) return", "if (next >= bytes.length) return"],
      ["parser = new Pieces(library, this.#receivers)\n      },", "parser = library\n      },"],
      ['headers.code === 0 ? ""', 'true ? ""'],
    ],
  },
  {
    file: "nats/Inbox.ts",
    tests: ["test/nats/Inbox.test.ts", "test/broker/rights.test.ts"],
    changes: [
      ["if (error === null) return this.#receive(...received(message))", "if (error === null) return"],
      ["this.#forget()\n        this.#refused", "this.#refused"],
    ],
  },
  {
    file: "nats/Window.ts",
    tests: ["test/nats/Window.test.ts"],
    changes: [
      ["Math.min(cost, this.#size)", "cost"],
      ["!this.#waiting.delete(waiter)", "this.#waiting.delete(waiter)"],
      ["if (waiter.cost > this.#free) return", ""],
    ],
  },
  {
    file: "nats/publish.ts",
    tests: ["test/nats/publish.test.ts", "test/broker/NatsLive.test.ts", "test/broker/recovery.test.ts"],
    changes: [
      ["if (stream !== (slice.stream ??= stream)) return false", ""],
      ["return slice.confirmed.add(answer).size > before", "return true"],
      ["if (--slice.unanswered === 0) slice.done()", "slice.unanswered--"],
      ["if (copy !== undefined) outgoing.publish(copy.subject, undefined, copy.headers, payload)", ""],
      ["if (end > start && cost + next > windowBytes / 2) break", ""],
    ],
  },
  {
    file: "nats/headers.ts",
    tests: ["test/nats/headers.test.ts"],
    changes: [
      ["while (end > start && isBlank(value.charCodeAt(end - 1))) end--", ""],
      ["return text.trim() === text", "return true"],
      ["if (!isWritable(name, value)) return false", ""],
      ["writableName.test(name) && (", "("],
    ],
  },
  {
    file: "nats/status.ts",
    tests: ["test/broker/Intake.test.ts"],
    changes: [
      ["hasNoMessages(status) || isExpired", "isExpired"],
      ["|| isUsedUp(status)", ""],
      ["isConflict({ code, description }) && /", "isConflict({ code, description }) || /"],
      ["code === 100", "code === 101"],
    ],
  },
  {
    file: "broker/consumerRules.ts",
    tests: ["test/broker/recovery.test.ts", "test/broker/accidents.test.ts", "test/broker/streamRules.test.ts"],
    changes: [
      ['if (config.deliver_subject !== undefined) return "expected a pull consumer, got a push consumer"', ""],
      ["if (config.ack_policy !== AckPolicy.Explicit)", "if (false)"],
      ["if ((config.max_deliver ?? -1) > 0)", "if (false)"],
      ["if (filters.join() !== filter)", "if (false)"],
      ["if (config.headers_only === true)", "if (false)"],
      ["if (config.deliver_policy !== DeliverPolicy.All)", "if (false)"],
      ["if (config.replay_policy !== ReplayPolicy.Instant)", "if (false)"],
      ["if ((config.backoff ?? []).length > 0)", "if (false)"],
      ["if (ackWait < ackWaitBounds.least || ackWait > ackWaitBounds.most)", "if (ackWait < ackWaitBounds.least)"],
      ["if (waiting > 0 && waiting < openRequests)", "if (false)"],
      ["if ((config.inactive_threshold ?? 0) > 0)", "if (false)"],
      ["if (config.mem_storage === true)", "if (false)"],
      ["if (config.pause_until !== undefined && Date.parse(config.pause_until) > Date.now())", "if (false)"],
    ],
  },
  {
    file: "broker/StreamLife.ts",
    tests: ["test/broker/StreamLife.test.ts"],
    changes: [
      ['else if (life.state !== "over") life.held.push([reply, answer])', ""],
      ["if (doubts === this.#doubts) this.#confirm(found)", "this.#confirm(found)"],
      ["found.created === this.#found.created &&", ""],
    ],
  },
  {
    file: "broker/Storing.ts",
    tests: ["test/broker/Storing.test.ts"],
    changes: [
      ["if (problem === this.#changed.get(stream)) return Effect.void", ""],
      ["if (!this.#isConnected() || !isSilence(error)) return forget", "if (!isSilence(error)) return forget"],
      ["Math.max(began, this.#connectedAt)", "began"],
      ["now - since >= silentMillis", "now - since >= 100 * silentMillis"],
      ["isStoring: this.#full === undefined && silent.length === 0", "isStoring: silent.length === 0"],
      ["|| now - this.#waitedAt < quietMillis[reserve]", ""],
    ],
  },
  {
    file: "broker/maintain.ts",
    tests: ["test/broker/ahead.test.ts", "test/broker/maintain.test.ts", "test/broker/fullStore.test.ts"],
    changes: [
      ['messages: role === "logs" ? 10_000 : 1_000', "messages: 0"],
      ["maxStorage > 0 ? maxStorage / 16 : Infinity", "Infinity"],
      ["if (open !== null) upTo = Math.min(upTo, open.seq - 1)", ""],
      ["Math.max(consumer.ack_floor.stream_seq, consumer.delivered.stream_seq)", "consumer.delivered.stream_seq"],
      ["some((subject) => !filters.has(subject))) return", "some(() => false)) return"],
      ["const seq = upTo - marginMessages(kept, stream, takenMean)", "const seq = upTo"],
    ],
  },
  {
    file: "broker/parked.ts",
    tests: ["test/broker/parked.test.ts", "test/broker/NatsLive.test.ts"],
    changes: [
      ["if (payload.byteLength + block.length > maxPayload) return undefined", ""],
      ["token.length <= tokenMax ? token :", "token.length > 0 ? token :"],
      ["if (!isSubject(subject) || !seqPattern.test(seq) || !timestampPattern.test(timestamp)) return undefined", ""],
      ["headers.slice(end + 1).map(unkept)", "headers.map(unkept)"],
      [
        "const value = (wanted: string): string => headers.slice(0, end).find",
        "const value = (wanted: string): string => headers.find",
      ],
    ],
  },
  {
    file: "broker/deadLetter.ts",
    tests: ["test/broker/deadLetter.test.ts", "test/letters", "test/broker/NatsLive.test.ts"],
    changes: [
      ["payload.byteLength + blockBytes(all) <= maxPayload", "payload.byteLength <= maxPayload"],
      ["const partBytes = maxPayload - partOverhead", "const partBytes = maxPayload"],
      [".slice(0, reasonMax)", ""],
      ["...reasonHeaders(delivery, reason, `-${i + 1}`)", '...reasonHeaders(delivery, reason, "")'],
    ],
  },
  {
    file: "broker/keptHeaders.ts",
    tests: ["test/letters", "test/broker/parked.test.ts", "test/nats/headers.test.ts"],
    changes: [['name.startsWith("Original-") && renamed.test(name)', 'name.startsWith("Original-")']],
  },
  {
    file: "letters/Letter.ts",
    tests: ["test/letters", "test/cli/dead.test.ts"],
    changes: [
      ["if (open.payloads.size < open.count) return undefined", ""],
      ["missingParts: Math.max(1, count - payloads.size)", "missingParts: 0"],
      ["id !== identity && part === undefined", "false"],
      ["id === identity ? undefined : readPart", "readPart"],
    ],
  },
  {
    file: "letters/deadLetters.ts",
    tests: ["test/letters", "test/cli/dead.test.ts"],
    changes: [
      ["if (missingParts > 0 && payload === letter.payload) {", "if (false) {"],
      ["payload.byteLength + block.length > maxPayload", "false"],
      [".filter(({ seq }) => seq <= upTo)", ""],
      ["if (stamp === undefined) return new NotRetried", "if (false) return new NotRetried"],
      ["isPlain(header) && !/^nats-/i.test(header[0])", "isPlain(header)"],
    ],
  },
  {
    file: "placement/guard.ts",
    tests: ["test/placement"],
    changes: [
      ['if (unreachable.length > 0) return { _tag: "Wait", unreachable }', ""],
      ["configured.version === recorded.version && configured.hash", "configured.hash"],
      ["!isOurs && !all.some(", "!all.some("],
      [
        'const isReady = (at: Recorded): boolean => at.record.state === "ready"',
        "const isReady = (_: Recorded): boolean => true",
      ],
      ["if (weight === undefined || weight === shard.weight) continue", "continue"],
      ["if (orderHere.some((name, index) => name !== orderThere[index])) {", "if (false) {"],
      ['.filter((at) => at.record === "unreadable")', ".filter(() => false)"],
    ],
  },
  {
    file: "placement/HashRing.ts",
    tests: ["test/placement/HashRing.test.ts"],
    changes: [
      [">>> 20", ">>> 19"],
      ["if (gives[owner] === 0) continue", ""],
      ["if (names.has(name)) return refuse", "if (false) return refuse"],
    ],
  },
  {
    file: "contract/Request.ts",
    tests: contract,
    changes: [
      ["plain[2]!.length * 6 + 2 <= logMaxBytes(limits.maxPayload)", "true"],
      [
        "plain[2]!.length * 6 + 2",
        "plain[2]!.length * 3 + 2",
        "without an escape a character takes three bytes at most: both are safe",
      ],
      ["if (log.length * 6 + 2 > allowed) {", "if (log.length > allowed) {"],
      ["if (size > allowed) {", "if (false) {"],
      ["requestId.length <= requestIdMax", "true"],
      ["|| subject.startsWith(`${responseTopic}.`)", "|| subject.startsWith(responseTopic)"],
      ["&& isPublishable(subject)", ""],
      ["if (slashes % 2 === 0) return at", "return at"],
      ["if (depth !== 1 || at - start > 13) continue", "if (at - start > 13) continue"],
      ['if (afterPosition !== undefined && order === "desc") {', "if (false) {"],
      ["if (afterPosition !== undefined && after !== undefined) {", "if (false) {"],
      ["order !== undefined && cursor.order !== order &&", "false &&"],
      ["!isCount(limit, 1)", "!isCount(limit, 0)"],
      ["!isCount(from, 0)", "!isCount(from, -1)"],
      ["Number.isSafeInteger(value) && value >= minimum", "value >= minimum"],
      ["messageId.length * 3 <= messageIdMaxBytes", "messageId.length <= messageIdMaxBytes"],
      ['cursor?.order ?? order ?? "asc"', 'order ?? cursor?.order ?? "asc"'],
    ],
  },
  {
    file: "contract/Cursor.ts",
    tests: ["test/contract"],
    changes: [
      ["if (match === null || match[2] !== id.toString(36)) return undefined", "if (match === null) return undefined"],
      ["|| first > timestampMax", ""],
      ["match[4] === undefined && Number.isSafeInteger(position)", "Number.isSafeInteger(position)"],
    ],
  },
  {
    file: "contract/Event.ts",
    tests: ["test/contract", "test/load"],
    changes: [
      ["duplicate: duplicate !== undefined,", "duplicate: false,"],
      [
        "const match = text.length < usualLengthMax ? usual.exec(text) : null",
        "const match = usual.exec(text)",
        "only the speed changes: the pattern has one meaning at any length",
      ],
      ["duplicate: duplicate === true", "duplicate: false"],
    ],
  },
  {
    file: "contract/LogEntry.ts",
    tests: ["test/contract"],
    changes: [
      ["|| !log.isWellFormed()", ""],
      ["|| losesItsBeginning(log)", ""],
      ["nanos > timestampMax ? timestampMax : nanos", "nanos"],
      [": a.seq - b.seq", ": 0"],
    ],
  },
  {
    file: "shard/plan.ts",
    tests: ["test/shard/plan.test.ts", "test/shard/Memory.test.ts"],
    changes: [
      ["entry.timestamp <= head.lastTimestamp", "entry.timestamp < head.lastTimestamp"],
      ["?? inBatch.get(messageId)", ""],
      ['compareStamps(same, entry) === 0 ? "Stored" : "Duplicate"', '"Duplicate"'],
      ["entry.timestamp > head.lastTimestamp ? entry.timestamp : head.lastTimestamp", "entry.timestamp"],
      ["const head = changed.get(entry.id) ?? locked", "const head = locked"],
      ["if (batch[index]!.id === entry.id) return index", "return index"],
      ["if (messageId !== undefined) inBatch.set(messageId, stored)", ""],
      ["return order.sort((a, b) => compareStamps(batch[a]!, batch[b]!))", "return order"],
    ],
  },
  {
    file: "shard/appendEntries.ts",
    tests: ["test/shard/ShardPoolLive.test.ts", "test/shard/transaction.test.ts", "test/simulation/simulation.test.ts"],
    changes: [
      [".sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))", ""],
      [
        " order by id for update",
        " for update",
        "PostgreSQL reads the ids through the index, in their order, whatever is said; the order is for the plan that does not",
      ],
      ["for update`,", "`,"],
      ["if (heads.size < ids.length) {", "if (false) {"],
      ["queues ? sql`select pg_advisory_xact_lock(${gate})` : Effect.void", "Effect.void"],
      ["queueing = isOvertaken ? rememberedBatches : Math.max(0, queueing - 1)", "queueing = 0"],
      ["entry.redelivered || suspecting > 0", "suspecting > 0"],
      ["suspecting = rememberedBatches\n          return attempt(() => true)", "return attempt(() => false)"],
      ["if (known.size > knownMax) known.clear()", "", "a bound of memory that needs 65,536 objects; open"],
      ["times: 5,", "times: 0,"],
    ],
  },
  {
    file: "shard/readPage.ts",
    tests: ["test/shard/Memory.test.ts", "test/shard/ShardPoolLive.test.ts"],
    changes: [
      ["compareStamps(after, below) < 0 ? after : below", "after"],
      ["compareStamps(after, above) > 0 ? after : above", "after"],
      ["and position <= ${BigInt(query.upTo)}", ""],
      ["and position <= ${BigInt(query.scanTo)}", ""],
      ["and position <= head.entries", "", "one statement sees one state of the tables: the bound says so to readers"],
      ["if (row.log === null) page.isCut = true", ""],
      ["where bytes_before is null or bytes_before < ${BigInt(query.maxBytes)}", ""],
    ],
  },
  {
    file: "shard/transient.ts",
    tests: ["test/shard/transient.test.ts", "test/shard/ShardPoolLive.test.ts"],
    changes: [
      ["/^(?:22|23|54)/", "/^(?:22|23|53|54)/"],
      ['sqlState === "40001" || sqlState === "40P01"', 'sqlState === "40001"'],
      ["|| /^(?:XX00[12]|57014)$/.test(sqlState)", ""],
      ['.replace(/\\/\\/[^@/\\s]*@/g, "//<redacted>@")', ""],
    ],
  },
  {
    file: "shard/sessions.ts",
    tests: ["test/shard/sessions.test.ts"],
    changes: [
      ["if (Cause.hasInterrupts(cause) || Cause.hasDies(cause)) session.discard()", ""],
      ["!session.isDiscarded && session.epoch === epoch", "!session.isDiscarded"],
      ["&& idle.length + inUse < keptMax", ""],
    ],
  },
  {
    file: "shard/connectSession.ts",
    tests: ["test/shard/login.test.ts", "test/shard/pooler.test.ts", "test/shard/failover.test.ts"],
    changes: [
      ['rejectUnauthorized: mode !== "require"', "rejectUnauthorized: false"],
      ['mode === "verify-full" ? {}', "true ? {}"],
      ["if (answer.mark !== own)", "if (false)"],
      ["if (changed !== undefined)", "if (false)", "only a pooler that resets settings of a session shows it; open"],
      ['if (purpose === "append" && answer.read_only === "on")', "if (false)"],
    ],
  },
  {
    file: "shard/verify.ts",
    tests: ["test/shard/verify.test.ts", "test/shard/firstStart.test.ts", "test/shard/ShardPoolLive.test.ts"],
    changes: [
      ['shard.verified ||= shard.seen.record !== "unreachable"', "shard.verified = true"],
      [
        "if (failure.reason !== settingsLost) return",
        "if (true) return",
        "the second attempt after such a reset; open",
      ],
      ["if (shard.verifying !== undefined) return", "if (false) return"],
    ],
  },
  {
    file: "pipeline/Lane.ts",
    tests: ["test/pipeline/batches.test.ts", ...pipeline],
    changes: [
      ["if (!Latch.isOpen(down)) detachAll()", "", "only memory: what waits keeps the pieces that it came in; open"],
      ["for (const delivery of placed) delivery.ack()", ""],
      ["const middle = works.length >> 1", "const middle = 0"],
      ['if (last._tag !== "Rejected") lossCheck', "lossCheck"],
      ["flow.stall(shard)\n    waiting", "waiting"],
      ["if (!said.has(error.reason)) yield*", "yield*"],
      ['while: (error) => error._tag === "ShardUnavailable"', "while: () => false"],
      ["entries -= works.length", ""],
    ],
  },
  {
    file: "pipeline/AppendPipeline.ts",
    tests: ["test/pipeline/batches.test.ts", ...pipeline],
    changes: [
      ["if (problem !== undefined) return Result.fail", "if (false) return Result.fail"],
      ['deliveryCount > 1 || source === "parked"', "deliveryCount > 1"],
      ['deliveryCount > 1 || source === "parked"', 'source === "parked"'],
      ["if (full.length > 0) yield* restore(admit(source, full))", ""],
    ],
  },
  {
    file: "pipeline/QueryPipeline.ts",
    tests: ["test/pipeline/reads.test.ts", ...pipeline],
    changes: [
      ['source === "intake" && delivery.deliveryCount > limits.readHandBacks', "false"],
      ["if (delivery.deliveryCount < limits.readAttempts)", "if (true)"],
      ["if (isInTheWay && shard.patience.left(before) <= 0) {", "if (false) {"],
    ],
  },
  {
    file: "pipeline/LossCheck.ts",
    tests: ["test/pipeline/parking.test.ts"],
    changes: [
      ["if (found !== undefined && found.timestamp === placed.timestamp && found.seq === placed.seq) return", "return"],
      ["found.timestamp === placed.timestamp &&", ""],
    ],
  },
  {
    file: "pipeline/Parking.ts",
    tests: ["test/pipeline/parking.test.ts", "test/pipeline/slow.test.ts"],
    changes: [['if (rest.length > 0) yield* metrics.count("handed_back_total", { shard }, rest.length)', ""]],
  },
  {
    file: "pipeline/Flow.ts",
    tests: ["test/pipeline/Flow.test.ts", "test/pipeline/slow.test.ts"],
    changes: [
      ["if (millis < limits.slowMillis) return false", ""],
      ["millis >= limits.slowerTimes * other.millis", "true"],
      ["return this.#stalled.size < this.#paces.size", "return true"],
    ],
  },
  {
    file: "pipeline/Shares.ts",
    tests: ["test/pipeline/Shares.test.ts", ...pipeline],
    changes: [
      ["found.waiting.size === 0 && this.#fits(found, object, weight)", "this.#fits(found, object, weight)"],
      ["if (shard.held === 0) return true", ""],
      ["if (shard.held + weight > limit) return false", ""],
      ["ofObject === 0 || ofObject + weight <= (limit - (shard.held - ofObject)) / 2", "true"],
      ["this.#common / Math.max(1, shards)", "0"],
    ],
  },
  {
    file: "pipeline/Waiting.ts",
    tests: ["test/pipeline/Waiting.test.ts", ...pipeline],
    changes: [
      ["this.#works.length >= this.#entriesMax ||", ""],
      ["|| !this.#budget.tryAdd(work.weight)", ""],
      ["&& characters < charactersMax", ""],
    ],
  },
  {
    file: "pipeline/Batcher.ts",
    tests: ["test/pipeline/Batcher.test.ts", ...pipeline],
    changes: [
      ["if (count > 0 && total > sizeMax) break", ""],
      ["if (this.#waiting.length === 0) this.#arrived.closeUnsafe()", ""],
    ],
  },
  {
    file: "pipeline/Refusals.ts",
    tests: ["test/pipeline/refusals.test.ts"],
    changes: [
      ["held.size >= limits.refusalsWaiting ||", ""],
      ["|| bytes >= limits.refusalsBytesMax", ""],
      ["if (left <= 0) return yield* handBack(refused.slice(next))", ""],
    ],
  },
  {
    file: "pipeline/limits.ts",
    tests: ["test/pipeline/Batcher.test.ts", "test/pipeline", "test/cli/heap.test.ts"],
    changes: [
      ["export const parkedShare = 1 / 4", "export const parkedShare = 0"],
      ["export const keepAliveMillis = 10_000", "export const keepAliveMillis = 100_000"],
      ["export const lossCheckMillis = 30_000", "export const lossCheckMillis = 3_000_000"],
      ["Math.min(deliveryCount - 1, 16)", "0"],
      ["export const refusalsBytesMax = 8 * 1024 * 1024", "export const refusalsBytesMax = 8_000 * 1024 * 1024"],
    ],
  },
  {
    file: "observe/Watchdog.ts",
    tests: ["test/observe/Watchdog.test.ts"],
    changes: [
      ["|| part.held === 0", ""],
      ["excused && part.excusable !== false", "excused"],
      ["held > 0 && now - since >= stuckMillis", "held > 0 && now - since >= 10 * stuckMillis"],
      ["if (blocked >= blockedMillis)", "if (false)"],
    ],
  },
  {
    file: "observe/Health.ts",
    tests: ["test/observe/Health.test.ts"],
    changes: [
      ["ready: brokerOk && shards.some(({ ok }) => ok)", "ready: shards.some(({ ok }) => ok)"],
      ["ready: brokerOk && shards.some(({ ok }) => ok)", "ready: brokerOk"],
      [
        "pending > 0 ? pending : pulls === 0 ? ackPending : 0",
        "pending",
        "a worker without any pull, which Intake does not allow; open",
      ],
      ["!connected || !isStoring ||", "!connected ||"],
    ],
  },
  {
    file: "client/PageMerge.ts",
    tests: ["test/cli/client.test.ts"],
    changes: [
      [
        "if (page.page < snapshot.expected) return undefined",
        "",
        "a repeated page is not handed on either way; it is only kept until the read ends",
      ],
      ["index >= 0 ? index + 1 :", "index >= 0 ? index :"],
      ['if (order === "position") return entry.position > last.position', ""],
      ["|| entry.seq - last.seq", ""],
    ],
  },
  {
    file: "client/Client.ts",
    tests: ["test/cli/client.test.ts"],
    changes: [
      ["return size <= allowed ? undefined :", "return true ? undefined :"],
      ["last && (next === undefined || left <= 0)", "last && next === undefined"],
      [
        "Math.min(before.entries * 8, readEntriesMax,",
        "Math.min(before.entries * 8,",
        "the bytes bound it too, for entries of 168 bytes and more; open",
      ],
    ],
  },
]
