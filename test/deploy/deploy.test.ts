/**
 * What is deployed names things of the program: variables, flags, metrics, alerts. Nobody notices when one of them is
 * renamed here only, until the night when a panel is empty. So every name is looked up where it is defined.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it, layer } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import { spawnSync } from "node:child_process"
import { readdirSync, readFileSync, statSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { findNatsServer } from "../../src/embedded/natsBinary.ts"

const root = fileURLToPath(new URL("../../", import.meta.url))
const read = (path: string): string => readFileSync(`${root}${path}`, "utf8")
const sources = (folder: string): string =>
  readdirSync(`${root}${folder}`, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))
    .map((file) => read(`${folder}/${file}`))
    .join("\n")

const found = (pattern: RegExp, text: string): ReadonlyArray<string> => [
  ...new Set([...text.matchAll(pattern)].map((match) => match[1]!)),
]

const dashboard: unknown = JSON.parse(read("deploy/grafana/dashboards/objectlog.json"))
const alerts = read("deploy/prometheus/alerts.yaml")

const record = (value: unknown): Readonly<Record<string, unknown>> => {
  assert(
    typeof value === "object" && value !== null && !Array.isArray(value),
    `expected an object, got ${typeof value}`,
  )
  return Object.fromEntries(Object.entries(value))
}

const list = (value: unknown): ReadonlyArray<Readonly<Record<string, unknown>>> => {
  assert(Array.isArray(value), `expected an array, got ${typeof value}`)
  return value.map(record)
}

/** The lines of a service in a compose file, without its comments. */
const service = (file: string, name: string): string => {
  const text = read(file).replaceAll(/^\s*#.*\n/gm, "")
  const block = new RegExp(`^  ${name}:\\n((?:    .*\\n|\\n)+)`, "m").exec(text)?.[1]
  assert(block !== undefined, `${file} has no service ${name}`)
  return block
}

/** Names of the variables that a service is given. */
const environment = (file: string, name: string): ReadonlyArray<string> => {
  const block = /^    environment:\n((?:      .*\n)+)/m.exec(service(file, name))?.[1]
  assert(block !== undefined, `${name} has no environment in ${file}`)
  return found(/^      ([A-Z_]+):/gm, block)
}

describe("dashboard and alerts", () => {
  const panels = list(record(dashboard)["panels"])
  const shown = panels.filter((panel) => panel["type"] !== "row")
  const expressions = shown.flatMap((panel) => list(panel["targets"]).map((target) => String(target["expr"])))

  it("every panel asks for something, and has an id and a place of its own", () => {
    assert.isAbove(shown.length, 10)
    assert.strictEqual(new Set(panels.map((panel) => panel["id"])).size, panels.length)
    for (const panel of shown) {
      assert.isNotEmpty(list(panel["targets"]), String(panel["title"]))
      const { x, w } = record(panel["gridPos"])
      assert.isAtMost(Number(x) + Number(w), 24, String(panel["title"]))
    }
    const places = panels.map((panel) => JSON.stringify(record(panel["gridPos"])))
    assert.strictEqual(new Set(places).size, panels.length)
  })

  it("every metric that they name exists", () => {
    const defined = sources("src/observe")
    const named = found(/\b(objectlog_[a-z_]+)/g, [...expressions, alerts.replaceAll(/^\s*#.*$/gm, "")].join("\n"))
    assert.isAbove(named.length, 15)
    const exists = (metric: string) =>
      new RegExp(`\\b${metric.slice("objectlog_".length)}: \\{|["\`]${metric}["\`]`).test(defined)
    const unknown = named.filter((metric) => !exists(metric.replace(/_(?:bucket|sum|count)$/, "")))
    assert.deepStrictEqual(unknown, [])
  })

  it("every alert is in the runbook, and no other one", () => {
    const names = found(/- alert: (\w+)/g, alerts)
    assert.isNotEmpty(names)
    assert.sameMembers([...found(/`(Objectlog[A-Z]\w+)`/g, read("docs/operating.md"))], [...names])
  })

  const promtool = (...argv: ReadonlyArray<string>) => {
    const run = spawnSync("promtool", argv, { cwd: root, encoding: "utf8", timeout: 30_000 })
    assert.strictEqual(run.status, 0, `promtool ${argv.join(" ")}: ${run.stdout}${run.stderr}`)
  }
  const absent = spawnSync("promtool", ["--version"]).error !== undefined

  // promtool: Debian package prometheus.
  it.skipIf(absent)("promtool accepts the rules and the scrape configuration", () =>
    promtool("check", "config", "deploy/prometheus/prometheus.yaml"),
  )

  it.skipIf(absent)("each alert fires on its fault, and none on a healthy service", () =>
    promtool("test", "rules", "test/deploy/alerts.yaml"),
  )
})

describe("compose files", () => {
  const files = [
    ["docker-compose.yaml", "worker"],
    ["docker-compose.test.yaml", "publisher"],
  ] as const

  it("give the program only variables that it knows", () => {
    const program = sources("src")
    // Read by the exporter of traces, and by Node.
    const specified = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "NODE_OPTIONS"]
    const known = (variable: string) =>
      specified.includes(variable) ||
      program.includes(`"${variable}"`) ||
      (variable.endsWith("_FILE") && program.includes(`secret("${variable.slice(0, -"_FILE".length)}"`))
    for (const [file, name] of files) {
      const given = environment(file, name)
      assert.includeMembers([...given], ["NATS_URL"])
      assert.deepStrictEqual(
        given.filter((variable) => !known(variable)),
        [],
        `${name} in ${file}`,
      )
    }
  })

  it("let every setting be set", () => {
    const inContainer = [
      "METRICS_HOST",
      "METRICS_PORT",
      "DATA_DIR",
      "NATS_SERVER",
      "POSTGRES_PORT",
      "POSTGRES_PASSWORD",
    ]
    const settings = found(
      /(?:given|parsed|secret|topic)\(\s*"([A-Z_]+)"/g,
      read("src/config/Config.ts").replaceAll(/,\s+/g, ", "),
    )
    assert.isAbove(settings.length, 10)
    const given = files.flatMap(([file, name]) => environment(file, name))
    assert.deepStrictEqual(
      settings.filter((variable) => !given.includes(variable) && !inContainer.includes(variable)),
      [],
    )
  })

  it("publish on the address that BIND_ADDRESS names, which is this machine's own by default", () => {
    const ports = files.flatMap(([file]) => found(/^    ports: \["(.*)"\]$/gm, read(file)))
    assert.isNotEmpty(ports)
    for (const port of ports) assert.match(port, /^\$\{BIND_ADDRESS:-127\.0\.0\.1\}:\$\{[A-Z]+_PORT:-\d+\}:\d+$/)
  })

  it("wait for every shard that they name", () => {
    const named = /POSTGRES_IPS: \$\{POSTGRES_IPS:-([a-z,-]+)\}/.exec(read("docker-compose.yaml"))?.[1]?.split(",")
    assert(named !== undefined)
    const worker = service("docker-compose.yaml", "worker")
    for (const shard of named) {
      assert.include(worker, `      ${shard}: { condition: service_healthy }`)
      assert.include(service("docker-compose.yaml", shard), `${shard}:/var/lib/postgresql`)
    }
  })
})

describe("what is deployed is confined", () => {
  const files = ["docker-compose.yaml", "docker-compose.test.yaml"]
  const blocks = files.flatMap((file) => {
    const services = /^services:\n((?: {2}.*\n|\n)+)/m.exec(read(file))?.[1] ?? ""
    return found(/^ {2}([a-z-]+):$/gm, services).map((name) => [name, service(file, name)] as const)
  })
  /** A block that others take over, as lines of a service. */
  const shared = (name: string) =>
    (
      new RegExp(`^x-${name}: &${name}\\n((?: {2}.*\\n)+)`, "m").exec(read("docker-compose.yaml"))?.[1] ?? ""
    ).replaceAll(/^/gm, "  ")
  const whole = (block: string): string =>
    block.replaceAll(/^ +<<: \*(\w+)\n/gm, (_, name: string) => whole(shared(name)))

  it("every service: without rights, and within bounds of memory, processes and logs", () => {
    assert.isAtLeast(blocks.length, 8)
    for (const [name, block] of blocks) {
      const lines = whole(block)
      for (const line of [
        /^ {4}read_only: true$/m,
        /^ {4}cap_drop: \[ALL\]$/m,
        /^ {4}security_opt: \["no-new-privileges:true"\]$/m,
        /^ {4}mem_limit: /m,
        /^ {4}pids_limit: /m,
        /^ {4}networks:/m,
        /max-size: 10m/,
      ]) {
        assert.match(lines, line, name)
      }
    }
  })

  it("every image, and that of the build, has an exact version", () => {
    const images = [
      ...found(/^\s+image: (\S+)$/gm, files.map(read).join("\n")),
      ...found(/^ARG NODE_IMAGE=(.*)$/gm, read("Dockerfile")),
    ]
    assert.isAtLeast(images.length, 7)
    for (const image of images.filter((name) => !name.includes("OBJECTLOG_IMAGE"))) {
      assert.match(image, image.startsWith("postgres:") ? /:\d+\.\d+$/ : /:v?\d+\.\d+\.\d+(?:-[a-z]+)?$/)
    }
    assert.notMatch(read("Dockerfile"), /^# *syntax/m)
    assert.include(
      read("Dockerfile"),
      `base.name="docker.io/library/${/^ARG NODE_IMAGE=(.*)$/m.exec(read("Dockerfile"))![1]}"`,
    )
  })

  it("workers are no superuser, who has no password", () => {
    assert.match(shared("shard"), /^ +POSTGRES_USER: postgres$/m)
    assert.include(service("docker-compose.yaml", "worker"), "POSTGRES_USER: ${POSTGRES_USER:-objectlog}")
    for (const name of ["shard-a", "shard-b"]) assert.include(service("docker-compose.yaml", name), "- *worker-role")
    assert.match(read("deploy/worker-role.sh"), /^alter role :"superuser" password null;$/m)
  })

  it("nothing but the exporter reaches what NATS says of itself", () => {
    const inNetwork = blocks.filter(([, block]) => /nats-monitoring[,\]:]/.test(block)).map(([name]) => name)
    assert.deepStrictEqual(inNetwork, ["nats", "nats-exporter"])
    assert.match(read("deploy/nats/nats.conf"), /^http: "nats-monitoring:8222"$/m)
  })

  it("a heap fits in its container", () => {
    const heap = Number(/--max-old-space-size=(\d+)/.exec(read("src/objectlog.js"))![1])
    const limit = Number(/mem_limit: \$\{WORKER_MEMORY:-(\d+)m\}/.exec(service("docker-compose.yaml", "worker"))![1])
    assert.isAtLeast(limit, 1.5 * heap)
    const nats = service("docker-compose.yaml", "nats")
    assert.include(nats, "GOMEMLIMIT: ${NATS_GOMEMLIMIT:-768MiB}")
    assert.include(nats, "mem_limit: ${NATS_MEMORY:-1g}")
  })

  layer(NodeServices.layer)((it) => {
    it.effect("nats-server takes its configuration, open and secure", () =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const folder = yield* fs.makeTempDirectoryScoped({ prefix: "objectlog-test-" })
        const command = yield* findNatsServer
        const version = spawnSync(command, ["--version"], { encoding: "utf8" }).stdout
        // Which 2.9, Debian 12's, does not know yet; the image is newer.
        const unknown = /v2\.9\./.test(version) ? /^ *sync_interval: .*$/m : /(?!)/
        for (const access of ["access.conf", "secure.conf"]) {
          const text = read(`deploy/nats/${access}`)
            .replace("/run/secrets/nats_certificate", `${root}test/nats/tls/name.pem`)
            .replace("/run/secrets/nats_key", `${root}test/nats/tls/name.key`)
          yield* fs.writeFileString(`${folder}/access.conf`, text)
          yield* fs.writeFileString(
            `${folder}/nats.conf`,
            read("deploy/nats/nats.conf").replace("/data", folder).replace(unknown, ""),
          )
          const run = spawnSync(command, ["-t", "-c", `${folder}/nats.conf`], {
            env: { NATS_SYNC_INTERVAL: "120s", NATS_PASSWORD: "secret" },
            encoding: "utf8",
          })
          assert.strictEqual(run.status, 0, `${access}: ${run.stderr}`)
        }
      }),
    )
  })
})

describe("image", () => {
  it("serves its metrics to the network that it is in", () => {
    assert.match(read("Dockerfile"), /^ENV .*\bMETRICS_HOST=0\.0\.0\.0$/m)
  })

  it("starts the program as npm does, which names Node's flags in its first line alone", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Readonly<Record<string, string>> }
    assert.strictEqual(scripts["start"], "exec src/objectlog.js start")
    assert.strictEqual(scripts["objectlog"], "exec src/objectlog.js")
    assert.match(read("Dockerfile"), /^ENTRYPOINT \["\/app\/src\/objectlog\.js"\]$/m)
    for (const file of ["package.json", "Dockerfile", "bench/Rig.ts", "test/chaos/Workers.ts"]) {
      assert.notMatch(read(file), /--max-old-space-size|--heap-growing/, file)
    }
    const [first] = read("src/objectlog.js").split("\n")
    assert.sameMembers(
      [...found(/(--[a-z-]+)=\d+/g, first!)],
      ["--max-old-space-size", "--max-semi-space-size", "--heap-growing-percent"],
    )
    assert.strictEqual(statSync(`${root}src/objectlog.js`).mode & 0o111, 0o111)
  })
})
