/**
 * The pull protocol against a server that the test plays, word by word, under a clock that the test moves: what only happens after
 * seconds of silence happens here too.
 */
import { afterEach, assert, beforeEach, describe, it, vi } from "@effect/vitest"
import type { NatsConnection, PermissionViolationError } from "@nats-io/transport-node"
import { Effect, Fiber } from "effect"
import type { Delivery } from "../../src/broker/Broker.ts"
import { Intake, type Options, type RequestLimits } from "../../src/broker/Intake.ts"
import type { StreamLives } from "../../src/broker/StreamLife.ts"
import { Volume } from "../../src/broker/Volume.ts"
import type { Incoming, Receive } from "../../src/nats/Incoming.ts"

const pull = 10
const unlimited: RequestLimits = { messages: Infinity, bytes: Infinity, millis: Infinity }

interface Request {
  readonly batch: number
  readonly max_bytes: number
  readonly expires: number
  readonly idle_heartbeat: number
}

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

/** An intake, and the server's side of it. */
const start = (options: Partial<Options> = {}, limits = unlimited) => {
  let receive: Receive | undefined
  let seq = 0
  const requests: Array<Request & { readonly subject: string; readonly reply: string }> = []
  const log: Array<string> = []
  const recovered: Array<readonly [reason: string | undefined, failures: number]> = []
  const subscription = {
    drain: async () => void log.push("drained"),
    unsubscribe: () => void log.push("unsubscribed"),
  }
  const connection = {
    info: { max_payload: 1_000 },
    isClosed: () => false,
    subscribe: () => subscription,
    publish: (subject: string, body: string, { reply }: { reply: string }) =>
      void requests.push({ subject, reply, ...(JSON.parse(body) as Request) }),
    request: async (subject: string) => void log.push(`asked ${subject}`),
  }
  const incoming = { listen: (_: unknown, given: Receive) => (receive = given), forget: () => (receive = undefined) }
  const stream = {
    name: "S",
    isSure: true,
    current: {},
    doubt: () => void log.push("doubt"),
    settle: (_: unknown, reply: string, answer: string) => void log.push(`${reply.split(".")[5]} ${answer}`),
    touch: (_: unknown, reply: string, answer: string) => void log.push(`${reply.split(".")[5]} ${answer}`),
  }
  const counts = { buffered: 0, taken: 0 }
  const intake = new Intake({
    counts,
    volume: new Volume(),
    connection: connection as unknown as NatsConnection,
    incoming: incoming as unknown as Incoming,
    stream: stream as unknown as StreamLives,
    consumer: "C",
    isParked: false,
    pull,
    bytes: 100_000,
    recover: (reason, failures) =>
      Effect.sync(() => {
        recovered.push([reason, failures])
        return limits
      }),
    ...options,
  })
  Effect.runFork(intake.keep)
  const tick = () => vi.advanceTimersByTimeAsync(1)
  return {
    intake,
    stream,
    counts,
    requests,
    log,
    recovered,
    tick,
    /** Delivers so many messages. */
    deliver: async (count: number, text = "x") => {
      for (let i = 0; i < count; i++) receive!("logs", `$JS.ACK.S.C.1.${++seq}.${seq}.1763900000000000000.0`, "", text)
      await tick()
    },
    /** Answers a request with a status. */
    answer: async (request: { readonly reply: string }, status: string) => {
      receive!(request.reply, "", `NATS/1.0 ${status}\r\n\r\n`, "")
      await tick()
    },
    take: () => Effect.runFork(intake.take),
    /** Lets so many seconds pass. */
    pass: (seconds: number) => vi.advanceTimersByTimeAsync(seconds * 1_000),
  }
}

const taken = (fiber: Fiber.Fiber<ReadonlyArray<Delivery>>) => Effect.runPromise(Fiber.join(fiber))

describe("Intake", () => {
  it("makes sure of the consumer first, and then asks for as much as one request may bring", async () => {
    const { recovered, requests, tick } = start()
    await tick()
    assert.deepStrictEqual(recovered, [[undefined, 0]])
    assert.lengthOf(requests, 1)
    assert.deepInclude(requests[0], {
      subject: "$JS.API.CONSUMER.MSG.NEXT.S.C",
      batch: pull,
      expires: 30_000_000_000,
      idle_heartbeat: 5_000_000_000,
    })
    assert.isAtLeast(requests[0]!.max_bytes, 1_000)
  })

  it("keeps to what the consumer allows, with a heartbeat that fits in its time", async () => {
    const { requests, tick } = start({}, { messages: 4, bytes: 2_000, millis: 9_000 })
    await tick()
    assert.deepInclude(requests[0], {
      batch: 4,
      max_bytes: 2_000,
      expires: 9_000_000_000,
      idle_heartbeat: 3_000_000_000,
    })
  })

  it("asks for nothing while its stream is in doubt", async () => {
    const { intake, pass, requests, stream } = start()
    stream.isSure = false
    intake.reconnected()
    await pass(2)
    assert.lengthOf(requests, 1)
    stream.isSure = true
    await pass(2)
    assert.lengthOf(requests, 2)
  })

  it("asks again once half has come, and holds no more than a request and a half", async () => {
    const { counts, deliver, pass, requests, take, tick } = start()
    await tick()
    await deliver(4)
    assert.lengthOf(requests, 1)
    // Nobody takes: what is held counts like what is still to come.
    await deliver(6)
    await pass(3)
    assert.lengthOf(requests, 1)
    assert.strictEqual(counts.buffered, 10)
    assert.lengthOf(await taken(take()), 10)
    await tick()
    assert.deepStrictEqual(
      requests.map(({ batch }) => batch),
      [10, 10],
    )
    assert.deepStrictEqual(counts, { buffered: 0, taken: 10 })
    await deliver(5)
    assert.deepStrictEqual(
      requests.map(({ batch }) => batch),
      [10, 10],
    )
    await taken(take())
    await tick()
    assert.strictEqual(requests.at(-1)!.batch, 5)
  })

  it("asks for nothing while it holds the bytes that it may", async () => {
    const { answer, deliver, pass, requests, take, tick } = start({ bytes: 1_000 })
    await tick()
    await deliver(2, "x".repeat(1_000))
    // Nothing more is to come of the first one.
    await answer(requests[0]!, "408 Request Timeout\r\nNats-Pending-Messages: 8")
    await pass(2)
    assert.lengthOf(requests, 1)
    await taken(take())
    await tick()
    assert.lengthOf(requests, 2)
  })

  it("asks for what was parked only when somebody waits and nothing of it is left", async () => {
    const { deliver, pass, requests, take, tick } = start({ isParked: true })
    await pass(2)
    assert.isEmpty(requests)
    const first = take()
    await tick()
    assert.lengthOf(requests, 1)
    await deliver(9)
    await taken(first)
    const second = take()
    await pass(2)
    assert.lengthOf(requests, 1, "one of the first request is still to come")
    await deliver(1)
    await taken(second)
    take()
    await tick()
    assert.lengthOf(requests, 2)
  })

  it.each([
    ["404 No Messages", 10],
    ["408 Request Timeout\r\nNats-Pending-Messages: 10\r\nNats-Pending-Bytes: 0", 10],
    ["408 Request Timeout\r\nNats-Pending-Messages: 7", 7],
    ["409 Batch Completed\r\nNats-Pending-Messages: 8", 8],
    ["409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 9", 9],
  ])("what an ended request won't bring is asked for again: %s", async (status, batch) => {
    const { answer, log, recovered, requests, tick } = start()
    await tick()
    await answer(requests[0]!, status)
    assert.deepStrictEqual(
      requests.map((request) => request.batch),
      [10, batch],
    )
    assert.lengthOf(recovered, 1)
    assert.isEmpty(log)
  })

  it.each(["409 Consumer Deleted", "409 Leadership Change", "503", "400 Bad Request"])(
    "a refusal casts doubt on the stream and loses the consumer: %s",
    async (status) => {
      const { answer, log, recovered, requests, tick } = start()
      await tick()
      await answer(requests[0]!, status)
      assert.deepStrictEqual(log, ["doubt"])
      assert.deepStrictEqual(recovered[1], [status === "503" ? "503 " : status, 0])
      assert.lengthOf(requests, 2)
      // What is said of a request that was given up is no news.
      await answer(requests[0]!, status)
      assert.lengthOf(recovered, 2)
      await answer(requests[1]!, status)
      assert.deepStrictEqual(recovered[2]?.[1], 1)
    },
  )

  it("counts failures in a row: a heartbeat or a message ends the row", async () => {
    const { answer, deliver, recovered, requests, tick } = start()
    await tick()
    await answer(requests.at(-1)!, "503")
    await answer(requests.at(-1)!, "503")
    await answer(requests.at(-1)!, "100 Idle Heartbeat")
    await answer(requests.at(-1)!, "503")
    await answer(requests.at(-1)!, "503")
    await deliver(1)
    await answer(requests.at(-1)!, "503")
    assert.deepStrictEqual(
      recovered.map(([, failures]) => failures),
      [0, 0, 1, 0, 1, 0],
    )
  })

  it("takes silence for a loss after three heartbeats, and no earlier; a sign begins anew", async () => {
    const { answer, log, pass, recovered, requests } = start()
    await pass(14)
    await answer(requests[0]!, "100 Idle Heartbeat")
    await pass(14)
    assert.lengthOf(recovered, 1)
    await pass(3)
    assert.deepStrictEqual(recovered[1], ["no sign of the consumer", 0])
    assert.deepStrictEqual(log, ["doubt"])
    assert.lengthOf(requests, 2)
    // A silent server is tried again, for as long as it takes.
    await pass(17)
    assert.lengthOf(recovered, 3)
  })

  it("expects no sign where nothing is to come", async () => {
    const { deliver, pass, recovered, tick } = start()
    await tick()
    await deliver(pull)
    await pass(60)
    assert.lengthOf(recovered, 1)
  })

  it("tells the broker every ten seconds of what nobody takes that it is held", async () => {
    const { deliver, log, pass, tick } = start()
    await tick()
    await deliver(pull)
    await pass(9)
    assert.isEmpty(log)
    await pass(3)
    assert.deepStrictEqual(
      log,
      Array.from({ length: pull }, (_, i) => `${i + 1} +WPI`),
    )
    await pass(11)
    assert.lengthOf(log, 2 * pull)
  })

  it("hands back at the end what nobody took, after the server knows that nobody listens", async () => {
    const { counts, deliver, intake, log, pass, requests, take, tick } = start()
    await tick()
    await deliver(3)
    await taken(take())
    await deliver(2)
    const asked = requests.length
    await intake.close()
    assert.deepStrictEqual(log, [
      "drained",
      "asked $JS.API.CONSUMER.INFO.S.C",
      '4 -NAK {"delay":100000000}',
      '5 -NAK {"delay":100000000}',
    ])
    assert.strictEqual(counts.buffered, 0)
    await pass(60)
    assert.lengthOf(requests, asked)
    assert.lengthOf(log, 4)
  })

  it("a new connection knows no request of before; that is no failure", async () => {
    const { answer, intake, log, recovered, requests, tick } = start()
    await tick()
    intake.reconnected()
    await tick()
    assert.deepStrictEqual(recovered, [
      [undefined, 0],
      [undefined, 0],
    ])
    assert.deepStrictEqual(
      requests.map(({ batch }) => batch),
      [10, 10],
    )
    await answer(requests[0]!, "408 Request Timeout\r\nNats-Pending-Messages: 10")
    assert.lengthOf(requests, 2)
    assert.isEmpty(log)
  })

  it("is lost with its stream, and by a refusal of its own subject alone", async () => {
    const { intake, recovered, tick } = start()
    await tick()
    intake.streamChanged()
    await tick()
    const violation = (subject: string, operation = "publish") =>
      ({ message: `no right to ${subject}`, operation, subject }) as PermissionViolationError
    intake.violated(violation("$JS.API.CONSUMER.MSG.NEXT.S.other"))
    intake.violated(violation("$JS.API.CONSUMER.MSG.NEXT.S.C", "subscription"))
    await tick()
    intake.violated(violation("$JS.API.CONSUMER.MSG.NEXT.S.C"))
    await tick()
    assert.deepStrictEqual(
      recovered.map(([reason]) => reason),
      [undefined, "its stream was made again", "no right to $JS.API.CONSUMER.MSG.NEXT.S.C"],
    )
  })
})
