/**
 * The checker, fed with logs that a test makes: a correct service, however it delays and reorders what it may, raises
 * nothing; each kind of fault is found.
 */
import { assert, describe, it } from "@effect/vitest"
import type { Payload } from "@nats-io/transport-node"
import { Arbitrary, Effect } from "effect"
import { TestClock } from "effect/testing"
import type { Entry } from "../../src/contract/Event.ts"
import { CompleteRead } from "../../src/load/CompleteRead.ts"
import type { Append } from "../../src/load/Append.ts"
import { makeFollower } from "../../src/load/Follower.ts"
import type { LedgerContext } from "../../src/load/LedgerContext.ts"
import { ObjectLedger } from "../../src/load/ObjectLedger.ts"
import { Reader } from "../../src/load/Reader.ts"
import { Texts } from "../../src/load/Texts.ts"
import { int } from "../contract/arbitraries.ts"

const timeoutMillis = 60_000

const makeContext = (verify = true) => {
  const found: Array<readonly [kind: string, reason: string]> = []
  const context: LedgerContext = {
    texts: new Texts("run001", { min: 10, max: 60 }),
    verify,
    timeoutMillis,
    violated: (kind, _, reason) => found.push([kind, reason]),
    counters: { verified: 0, foreign: 0 },
    pending: 0,
    floor: undefined,
    eventFloor: undefined,
  }
  return { context, found, kinds: () => found.map(([kind]) => kind) }
}

/** An object, its ledger, and a log as the service would keep it. */
const makeObject = () => {
  const { context, found, kinds } = makeContext()
  const object = new ObjectLedger(42n, 3, context)
  const log: Array<Entry> = []
  let seq = 1_000
  return {
    context,
    object,
    log,
    found,
    kinds,
    send: (): Append => {
      const append = object.next(0)
      object.sending(append)
      return append
    },
    /** What a correct service stores of it. */
    commit: (append: Append, stamp = ++seq): Entry => {
      const entry = {
        position: log.length + 1,
        seq: stamp,
        timestamp: 1_700_000_000_000 + stamp,
        log: context.texts.log(3, append.number),
      }
      log.push(entry)
      return entry
    },
    read: (entries: ReadonlyArray<Entry>, startedAt = 10, cut = false) => {
      for (const entry of entries) object.read(entry, startedAt)
      object.readTo(startedAt, cut)
    },
    complete: (entries: ReadonlyArray<Entry>) => {
      const check = new CompleteRead(object, context)
      for (const entry of entries) check.entry(entry)
      check.end()
    },
  }
}

const byTime = (log: ReadonlyArray<Entry>) => log.toSorted((a, b) => a.timestamp - b.timestamp || a.seq - b.seq)
const place = ({ position, seq, timestamp }: Entry) => ({ position, seq, timestamp })

describe("a correct service", () => {
  it("raises nothing, whatever comes first: acknowledgement, event, entry", () => {
    const orders = [
      ["stored", "answered", "read"],
      ["answered", "stored", "read"],
      ["read", "answered", "stored"],
      ["answered", "read", "stored"],
      ["read", "stored", "answered"],
      ["stored", "read", "answered"],
      ["stored", "read"],
      ["read"],
    ] as const
    for (const order of orders) {
      const test = makeObject()
      const entries = [1, 2, 3].map(() => {
        const append = test.send()
        return [append, test.commit(append)] as const
      })
      for (const step of order) {
        for (const [append, entry] of entries) {
          if (step === "stored") test.object.stored(append, entry.seq, 1)
          else if (step === "answered") test.object.answered(append.number, place(entry), 1)
          else test.object.read(entry, 1)
        }
        test.object.readTo(1, false)
      }
      test.complete(test.log)
      assert.deepStrictEqual(test.found, [], order.join())
      assert.strictEqual(test.object.appends.size, 0, order.join())
      assert.strictEqual(test.context.pending, 0)
      assert.strictEqual(test.object.unanswered, order.includes("answered" as never) ? 0 : 3)
    }
  })

  it.prop(
    "raises nothing for any order of commit, any cut of reads, and entries of others in between",
    [
      Arbitrary.array(Arbitrary.all([int(0, 1), int(0, 1_000)]), { maxLength: 60 }),
      Arbitrary.array(int(1, 7), { minLength: 1, maxLength: 60 }),
    ],
    ([plan, cuts]) => {
      const test = makeObject()
      const sent = plan.map(([other], index) => ({
        append: other === 1 ? undefined : test.send(),
        stamp: 2_000 + index,
      }))
      const commits = sent.map((one, index) => ({ ...one, key: plan[index]![1] })).toSorted((a, b) => a.key - b.key)
      for (const { append, stamp } of commits) {
        if (append !== undefined) {
          const entry = test.commit(append, stamp)
          test.object.stored(append, stamp, 1)
          test.object.answered(append.number, place(entry), 1)
        } else {
          const position = test.log.length + 1
          test.log.push({ position, seq: stamp, timestamp: 1_700_000_000_000 + stamp, log: "run002.3.1 other" })
        }
      }
      for (let at = 0, turn = 0; at < test.log.length || turn === 0; turn++) {
        const count = cuts[turn % cuts.length]!
        test.read(test.log.slice(at, at + count), 5, at + count < test.log.length)
        at += count
      }
      test.complete(byTime(test.log))
      assert.deepStrictEqual(test.found, [])
      assert.strictEqual(test.object.appends.size, 0)
      assert.strictEqual(test.context.counters.foreign, plan.filter(([other]) => other === 1).length)
    },
    { arbitrary: { runs: 200 } },
  )

  it("may have stored what was sent again by either attempt, and in another order", () => {
    const test = makeObject()
    const [first, second] = [test.send(), test.send()]
    test.object.sending(first)
    const entries = [test.commit(second), test.commit(first)]
    test.object.stored(first, 77, 1)
    test.object.stored(second, entries[0]!.seq, 1)
    test.read(entries)
    test.complete(byTime(test.log))
    assert.deepStrictEqual(test.found, [])
  })

  it("owes nothing above the broker's floor, however long it takes", () => {
    const test = makeObject()
    const append = test.send()
    test.object.stored(append, 5, 1)
    test.context.floor = { seq: 4, at: 2 }
    test.read([], 100 * timeoutMillis)
    test.context.floor = { seq: 5, at: 200 * timeoutMillis }
    test.read([], 150 * timeoutMillis)
    assert.deepStrictEqual(test.found, [], "a read that began before the floor was seen")
    test.read([], 201 * timeoutMillis)
    assert.deepStrictEqual(test.kinds(), ["lost"])
  })

  it("owes nothing that the broker did not acknowledge, and nothing while the log can't be read", () => {
    const test = makeObject()
    test.send()
    test.read([], 10 * timeoutMillis)
    const append = test.send()
    test.object.stored(append, 5, 10 * timeoutMillis)
    test.object.unreadable()
    test.read([], 20 * timeoutMillis)
    test.read([], 20 * timeoutMillis + timeoutMillis)
    assert.deepStrictEqual(test.found, [])
    test.read([], 21 * timeoutMillis + 1)
    assert.deepStrictEqual(test.kinds(), ["lost"])
  })

  it.effect("may answer a read once more after its end, with what only the next read has asked for", () =>
    Effect.gen(function* () {
      const test = makeObject()
      const requests: Array<{ readonly request_id: string; readonly after_position: number }> = []
      const connection = {
        isClosed: () => false,
        publish: (_: string, payload?: Payload) => void requests.push(JSON.parse(String(payload))),
      }
      const reader = new Reader(connection, "query", "run001.read-")
      /** The page of a worker that sees the whole log as it is now. */
      const answer = (index: number) => {
        const { after_position, request_id: requestId } = requests[index]!
        const snapshot = String(test.log.length)
        const entries = test.log.slice(after_position)
        reader.receive({ type: "query", requestId, snapshot, page: 0, last: true, entries, next: undefined })
      }
      const append = () => {
        const one = test.send()
        test.object.stored(one, test.commit(one).seq, 1)
      }
      append()
      append()
      const { follow } = yield* makeFollower({
        reader,
        objects: [test.object],
        context: test.context,
        textMax: 60,
        notice: () => Effect.void,
        isDraining: () => false,
      })
      yield* Effect.forkScoped(follow)
      yield* TestClock.adjust("20 millis")
      answer(0)
      append()
      yield* TestClock.adjust("6 seconds")
      assert.deepStrictEqual(
        requests.map((request) => request.after_position),
        [0, 2],
      )
      answer(0)
      answer(1)
      answer(0)
      assert.deepStrictEqual(test.found, [])
      assert.strictEqual(test.object.readBack, 3)
    }),
  )

  it("keeps its memory: settled appends are forgotten", () => {
    const test = makeObject()
    for (let i = 0; i < 20_000; i++) {
      const append = test.send()
      const entry = test.commit(append)
      test.object.answered(append.number, place(entry), 1)
      test.read([entry])
    }
    assert.deepStrictEqual(test.found, [])
    assert.isAtMost(test.object.appends.held, 2_100)
  })
})

describe("a faulty service", () => {
  /** Three appends, acknowledged and answered, and what the log of a correct service has. */
  const three = () => {
    const test = makeObject()
    const appends = [test.send(), test.send(), test.send()]
    const entries = appends.map((append) => test.commit(append))
    appends.forEach((append, index) => test.object.stored(append, entries[index]!.seq, 1))
    return { ...test, appends, entries }
  }

  it("lost one that it had not answered", () => {
    const test = three()
    test.read([test.entries[0]!, test.entries[1]!], 1 + timeoutMillis)
    assert.deepStrictEqual(test.kinds(), [])
    test.read([], 2 + timeoutMillis)
    assert.deepStrictEqual(test.kinds(), ["lost"])
    assert.include(test.found[0]![1], "append 3")
    assert.include(test.found[0]![1], `seq ${test.entries[2]!.seq}`)
  })

  it("did not answer one that the workers are done with", () => {
    const test = three()
    test.read(test.entries)
    test.object.answered(1, place(test.entries[0]!), 5)
    assert.isUndefined(test.object.missingEvent)
    test.context.eventFloor = { seq: test.entries[0]!.seq, at: 5 }
    assert.isUndefined(test.object.missingEvent)
    test.context.eventFloor = { seq: test.entries[1]!.seq, at: 5 }
    assert.strictEqual(test.object.missingEvent, test.appends[1])
    test.object.giveUpEvent(test.appends[1]!)
    assert.isUndefined(test.object.missingEvent)
    assert.strictEqual(test.object.unanswered, 1)
  })

  it("did not answer one, and logs are not read back", () => {
    const { context, kinds } = makeContext(false)
    const object = new ObjectLedger(1n, 0, context)
    const appends = [object.next(0), object.next(0)]
    appends.forEach((append, index) => object.stored(append, 10 + index, 1))
    object.answered(2, { position: 1, seq: 11, timestamp: 1 }, 2)
    context.eventFloor = { seq: 11, at: 5 }
    assert.strictEqual(object.missingEvent, appends[0])
    object.giveUpEvent(appends[0]!)
    assert.isUndefined(object.missingEvent)
    assert.deepStrictEqual([object.awaited, context.pending, kinds()], [0, 0, []])
  })

  it("does not show one that it answered before the read", () => {
    const test = three()
    test.object.answered(3, place(test.entries[2]!), 9)
    test.read([test.entries[0]!, test.entries[1]!], 9)
    assert.deepStrictEqual(test.kinds(), [], "answered while the read was under way")
    test.read([], 10)
    assert.deepStrictEqual(test.kinds(), ["invisible"])
  })

  it("has one twice: soon after, and after it was forgotten", () => {
    for (const forgotten of [false, true]) {
      const test = three()
      test.read(forgotten ? test.entries : test.entries.slice(0, 2))
      if (forgotten)
        test.appends.forEach(({ number }, index) => test.object.answered(number, place(test.entries[index]!), 1))
      const again = { ...test.entries[1]!, position: forgotten ? 4 : 3, seq: 5_000, timestamp: 1_700_000_005_000 }
      test.read([again])
      assert.deepStrictEqual(test.kinds(), ["duplicated"])
    }
  })

  it("gives a position twice, or leaves one out", () => {
    const twice = three()
    twice.read([twice.entries[0]!, { ...twice.entries[1]!, position: 1 }])
    assert.strictEqual(twice.kinds()[0], "duplicated")
    const gap = three()
    gap.read([gap.entries[0]!, { ...gap.entries[1]!, position: 3 }])
    assert.strictEqual(gap.kinds()[0], "gap")
    assert.include(gap.found[0]![1], "expected position 2, got 3")
  })

  it("stamps two in another sequence than they were sent in", () => {
    const test = makeObject()
    const [first, second] = [test.send(), test.send()]
    test.read([test.commit(second, 10), test.commit(first, 11)])
    assert.deepStrictEqual(test.kinds(), ["reordered"])
  })

  it("changes a text, and the report does not show it", () => {
    const test = three()
    const log = `${test.entries[1]!.log.slice(0, -1)}\u00e9`
    test.read([test.entries[0]!, { ...test.entries[1]!, log }, test.entries[2]!])
    assert.deepStrictEqual(test.kinds(), ["altered"])
    assert.include(test.found[0]![1], "is U+00e9")
    assert.notInclude(test.found[0]![1], log)
  })

  it("says one thing in an event and another in the entry, the acknowledgement, or the event's repetition", () => {
    const changes = [{ position: 9 }, { seq: 9 }, { timestamp: 9 }]
    for (const change of changes) {
      const eventFirst = three()
      eventFirst.object.answered(1, { ...place(eventFirst.entries[0]!), ...change }, 20)
      eventFirst.read(eventFirst.entries)
      assert.include(eventFirst.kinds(), "contradicted")
      const entryFirst = three()
      entryFirst.read(entryFirst.entries)
      entryFirst.object.answered(1, { ...place(entryFirst.entries[0]!), ...change }, 20)
      assert.include(entryFirst.kinds(), "contradicted")
      const repeated = three()
      repeated.object.answered(1, place(repeated.entries[0]!), 20)
      repeated.object.answered(1, { ...place(repeated.entries[0]!), ...change }, 20)
      assert.deepStrictEqual(repeated.kinds(), ["contradicted"])
    }
    const acknowledged = makeObject()
    const append = acknowledged.send()
    acknowledged.object.stored(append, 999, 1)
    acknowledged.read([acknowledged.commit(append, 5)])
    assert.deepStrictEqual(acknowledged.kinds(), ["contradicted"])
  })

  it("answers or stores what was never sent, or in another object's log", () => {
    const never = three()
    never.object.answered(4, place(never.entries[0]!), 1)
    assert.deepStrictEqual(never.kinds(), ["invented"])
    const elsewhere = makeObject()
    elsewhere.send()
    elsewhere.read([{ position: 1, seq: 1, timestamp: 1, log: elsewhere.context.texts.log(4, 1) }])
    assert.deepStrictEqual(elsewhere.kinds(), ["invented"])
  })

  it("is not seen where others append, and the follower goes on, beside the complete read", () => {
    const test = three()
    test.read(test.entries)
    const check = new CompleteRead(test.object, test.context)
    const other = { position: 4, seq: 5_000, timestamp: 1_700_000_005_000, log: "another's" }
    test.read([other])
    for (const entry of test.entries) check.entry(entry)
    check.end()
    assert.deepStrictEqual(test.kinds(), [])
  })

  it("is found out by the complete read at the end", () => {
    const read = (change: (log: Array<Entry>) => ReadonlyArray<Entry>) => {
      const test = three()
      test.read(test.entries)
      test.complete(change([...test.log]))
      return test.kinds()
    }
    assert.deepStrictEqual(
      read((log) => log),
      [],
    )
    assert.include(
      read((log) => log.slice(0, 2)),
      "gap",
    )
    assert.include(
      read((log) => [...log, log[2]!]),
      "duplicated",
    )
    assert.include(
      read((log) => [...log, { ...log[2]!, position: 4, seq: 9_999 }]),
      "duplicated",
    )
    assert.include(
      read(([a, b, c]) => [b!, a!, c!]),
      "reordered",
    )
    assert.include(
      read(([a, b, c]) => [a!, { ...c!, timestamp: b!.timestamp }, { ...b!, timestamp: c!.timestamp }]),
      "reordered",
    )
    assert.include(
      read(([a, b, c]) => [a!, { ...b!, log: `${b!.log}x` }, c!]),
      "altered",
    )
    assert.deepStrictEqual(
      read(([a, b, c]) => [a!, b!, { ...c!, seq: c!.seq + 1 }]),
      ["contradicted"],
    )
  })
})
