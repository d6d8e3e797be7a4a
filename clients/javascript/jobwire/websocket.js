/** All jobs over one WebSocket. */
import {Connection, reasonOf} from "./connection.js";
import {ConnectionFailed, Cut, NoKey} from "./errors.js";
import {keyOf, renews} from "./options.js";
import {Retry, STABLE_MS} from "./retry.js";
import {Changes, sleep} from "./waiting.js";
import {CONNECT_TIMEOUT_MS} from "./wire.js";

/** The close code of a connection that the program drops. */
const DROPPED = 4000;

/**
 * All jobs over one WebSocket, which is opened when a job needs it, and reopened after a cut. After a goaway there may
 * be a second one: the old one keeps its jobs until they end, or it does.
 */
export class WebSocketTransport {
  name = "websocket";
  #settings;
  #subscriptions;
  #fallBack;
  #retry;
  #connections = [];
  #wanted = new Changes();
  #closing = new AbortController();

  constructor(settings, subscriptions, fail, fallBack) {
    this.#settings = settings;
    this.#subscriptions = subscriptions;
    this.#fallBack = fallBack;
    this.#retry = new Retry(settings);
    this.#run().catch(fail);
  }

  notify(subscription) {
    const connection = this.#carrier(subscription) ?? this.#current;
    if (connection) connection.notify(subscription);
    else this.#wanted.notify();
  }

  reconnect() {
    for (const connection of [...this.#connections]) connection.lose(reasonOf(DROPPED, "Dropped by the program"));
  }

  close() {
    this.#closing.abort(new ConnectionFailed("The client is closed", "closed"));
    this.reconnect();
  }

  /** The connection for new jobs. */
  get #current() {
    return this.#connections.find((connection) => connection.acceptsJobs);
  }

  #carrier(subscription) {
    return this.#connections.find(({jobs}) => jobs.get(subscription.id) === subscription);
  }

  get #unconnected() {
    return [...this.#subscriptions.values()].filter((subscription) => !this.#carrier(subscription));
  }

  /** Connect when a job needs it, and again when the connection accepts no new jobs. Rejects if that is useless. */
  async #run() {
    for (;;) {
      while (!this.#unconnected.length) await this.#wanted.wait();
      const reason = await this.#connect().then((connection) => this.#adopt(connection)).catch((failure) => failure);
      this.#closing.signal.throwIfAborted();
      if (await this.#isBlocked(reason)) return this.#fallBack();
      if (!(reason instanceof Cut)) throw reason;
      await sleep(this.#retry.delayMs(reason, reason.retryMs), this.#closing.signal);
    }
  }

  /** Connect, with another key if the first one is refused. Rejects with Cut, ConnectionFailed. */
  async #connect() {
    return this.#dial().catch((failure) => {
      if (!this.#mayHaveAnotherKey(failure)) throw failure;
      return this.#dial();
    });
  }

  #mayHaveAnotherKey(reason) {
    return renews(this.#settings) && reason.code === "unauthorized";
  }

  async #dial() {
    const key = await keyOf(this.#settings);
    this.#closing.signal.throwIfAborted();
    const connection = new Connection(key, this.#settings, this.#subscriptions, this.#retry);
    this.#connections.push(connection);
    connection.ended.then(() => this.#forget(connection));
    await connection.greeted;
    return connection;
  }

  /** Hand a new connection the jobs that have none; resolves to the reason when it accepts no more. */
  async #adopt(connection) {
    this.#fallBack = null; // WebSockets work here
    for (const subscription of this.#unconnected) connection.notify(subscription);
    const reason = await connection.gone;
    if (connection.lastedMs > STABLE_MS) this.#retry.clear();
    return this.#mayHaveAnotherKey(reason) ? new Cut(reason.message) : reason;
  }

  /** Move the jobs of a connection that has ended to another one. */
  #forget(connection) {
    this.#connections.splice(this.#connections.indexOf(connection), 1);
    for (const subscription of connection.jobs.values()) {
      subscription.detach();
      this.#subscriptions.forgetIfOver(subscription);
    }
    this.#wanted.notify();
    for (const subscription of this.#unconnected) this.#current?.notify(subscription);
  }

  /** Return whether the worker answers HTTP, though no WebSocket ever got through to it. */
  async #isBlocked(reason) {
    // A close code proves that WebSockets get through; without a key no connection was tried.
    if (!this.#fallBack || !(reason instanceof Cut) || reason instanceof NoKey || reason.closeCode) return false;
    try {
      const signal = AbortSignal.timeout(CONNECT_TIMEOUT_MS);
      return (await this.#settings.fetch(`${this.#settings.base}/`, {signal})).ok && !this.#closing.signal.aborted;
    } catch {
      return false;
    }
  }
}
