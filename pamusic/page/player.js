// Buttons, keys and pointers: one piece plays at a time. Knows the page. Names and texts of pieces are shown as text.
"use strict";

const TICK_MS = 200; // how often it is looked which notes are due
const STEP = 5; // seconds that an arrow goes
const CLICK = 5; // pixels that a finger may move in a click
const ZOOM = 1.6;
const LABELS = [
  [".stop", "Stop"],
  [".seek", "Position in"],
  [".closer", "Zoom in on"],
  [".farther", "Zoom out of"],
  [".download", "Download the MIDI file of"],
];
const LOUDEST = 1.6; // gain of a full volume: dense music reaches the limiter there

const leaps = matchMedia("(prefers-reduced-motion: reduce)");

// One piano for all pieces, made at the first click: browsers give sound to none before.
const sound = {
  context: null,
  piano: null,
  start() {
    if (!this.context) {
      this.context = new AudioContext({ latencyHint: "playback" });
      this.piano = new Piano(this.context);
      this.setVolume();
    }
    return this.context.resume();
  },
  setVolume() {
    const loud = LOUDEST * (document.getElementById("volume").value / 100) ** 2;
    this.piano?.volume.gain.setTargetAtTime(loud, this.context.currentTime, 0.03);
  },
};

class Player {
  constructor(about, number) {
    const { name, seconds, newFrom } = about;
    const notes = notesOf(about.notes), pedal = pedalOf(about.pedal);
    const root = document.getElementById("piece").content.cloneNode(true).firstElementChild;
    const part = (selector) => root.querySelector(selector);
    Object.assign(this, { root, name, seconds, playButton: part(".play"), time: part(".time"), slider: part(".seek") });
    root.setAttribute("aria-labelledby", (part("h2").id = `piece-${number}`));
    part("h2").textContent = name;
    part(".summary").textContent = summary(notes.length, seconds, newFrom);
    for (const [selector, label] of LABELS) part(selector).setAttribute("aria-label", `${label} ${name}`);
    part(".roll").setAttribute("aria-label", `Piano roll of ${name}: ${part(".summary").textContent}`);
    part(".download").href = `data:audio/midi;base64,${about.midi}`;
    const file = name.split("/").pop();
    part(".download").download = /\.midi?$/i.test(file) ? file : `${file}.mid`;
    fillFacts(part("details"), about);
    document.getElementById("pieces").append(root);

    this.roll = new Roll(part(".roll"), part(".overview"), { notes, pedal, seconds, newFrom });
    this.timeline = new Timeline(notes, seconds, {
      clock: () => sound.context.currentTime,
      prepare: (coming) => sound.piano.prepare(coming),
      strike: (...stroke) => sound.piano.strike(...stroke),
      hush: () => sound.piano.hush(),
    });
    this.slider.max = seconds;
    this.playButton.addEventListener("click", () => this.toggle());
    part(".stop").addEventListener("click", () => this.stop());
    part(".closer").addEventListener("click", () => this.zoom(ZOOM));
    part(".farther").addEventListener("click", () => this.zoom(1 / ZOOM));
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    root.addEventListener("focusin", () => (current = this));
    root.addEventListener("pointerdown", () => (current = this));
    this.listenToRoll(part(".roll"));
    this.listenToOverview(part(".overview"));
    new ResizeObserver(() => this.measure()).observe(part(".roll"));
    this.tell();
  }

  get isPlaying() {
    return this.timeline.isPlaying;
  }

  get position() {
    const { context } = sound;
    return this.timeline.position(context ? context.outputLatency || 0 : 0);
  }

  toggle() {
    if (this.isPlaying) this.pause();
    else this.play();
  }

  async play() {
    players.forEach((other) => other !== this && other.pause());
    current = this;
    await sound.start();
    if (this.isPlaying || current !== this) return; // meanwhile it was clicked again, or another one
    this.timeline.play();
    this.roll.follow(this.position, leaps.matches);
    this.timer = setInterval(() => this.tick(), TICK_MS);
    this.isFollowed = true;
    this.tell();
    this.animate();
  }

  pause() {
    this.timeline.pause();
    this.rest();
  }

  stop() {
    this.timeline.stop();
    this.roll.show(0);
    this.rest();
  }

  rest() {
    clearInterval(this.timer);
    this.tell();
  }

  tick() {
    if (!this.timeline.tick()) this.stop();
  }

  seek(second) {
    this.timeline.seek(second);
    if (!this.isPlaying) clearInterval(this.timer);
    this.isFollowed = true;
    const { left, span } = this.roll;
    if (second < left || second > left + span) this.roll.follow(second, false);
    this.tell();
  }

  zoom(factor) {
    this.roll.zoom(factor, Math.min(Math.max(this.position, this.roll.left), this.roll.left + this.roll.span));
    this.tell();
  }

  measure() {
    this.roll.measure();
    this.tell();
  }

  animate() {
    if (!this.isPlaying) return;
    if (this.isFollowed) this.roll.follow(this.position, leaps.matches);
    this.tell();
    requestAnimationFrame(() => this.animate());
  }

  // Shows where it is.
  tell() {
    const { position, isPlaying } = this;
    const word = isPlaying ? "Pause" : "Play";
    if (this.playButton.textContent !== word) this.playButton.textContent = word;
    this.playButton.setAttribute("aria-label", `${word} ${this.name}`);
    const now = `${clockTime(position)} / ${clockTime(this.seconds)}`;
    if (this.time.textContent !== now) {
      this.time.textContent = now;
      this.slider.setAttribute("aria-valuetext", `${clockTime(position)} of ${clockTime(this.seconds)}`);
    }
    this.slider.value = position;
    this.roll.draw(position);
  }

  // A click plays from there; a drag looks elsewhere, and so does the wheel sideways; with Ctrl it zooms.
  listenToRoll(canvas) {
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = { x: event.offsetX, left: this.roll.left, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from || (!from.moved && Math.abs(event.offsetX - from.x) < CLICK)) return;
      from.moved = true;
      this.isFollowed = false;
      this.roll.show(from.left - (event.offsetX - from.x) / this.roll.pixelsASecond);
      this.tell();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from && !from.moved) this.playFrom(this.roll.secondAt(event.offsetX));
      from = null;
    });
    canvas.addEventListener("pointercancel", () => (from = null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        const [across, along] = event.shiftKey ? [event.deltaX || event.deltaY, 0] : [event.deltaX, event.deltaY];
        const { roll } = this;
        if (event.ctrlKey) roll.zoom(ZOOM ** (-event.deltaY / 100), roll.secondAt(event.offsetX));
        else if (Math.abs(across) > Math.abs(along)) roll.show(roll.left + across / roll.pixelsASecond);
        else return; // the page scrolls
        event.preventDefault();
        this.isFollowed = false;
        this.tell();
      },
      { passive: false },
    );
  }

  listenToOverview(canvas) {
    const secondAt = (event) => (event.offsetX / Math.max(1, canvas.clientWidth)) * this.seconds;
    const look = (event) => {
      this.seek(secondAt(event));
      this.roll.show(this.position - this.roll.span / 2);
      this.tell();
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      look(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && look(event));
  }

  playFrom(second) {
    this.seek(second);
    if (!this.isPlaying) this.play();
  }
}

function summary(numNotes, seconds, newFrom) {
  const words = [clockTime(seconds), `${numNotes.toLocaleString("en")} ${numNotes === 1 ? "note" : "notes"}`];
  if (newFrom !== null) words.push(`new from ${clockTime(newFrom)} on`);
  return words.join(" · ");
}

function fillFacts(details, { facts, commands }) {
  details.hidden = !facts.length && !commands.length;
  for (const [what, how] of facts) {
    const term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = what;
    told.textContent = how;
    details.querySelector("dl").append(term, told);
  }
  for (const [what, command] of commands) {
    const words = document.createElement("p"), line = document.createElement("pre");
    words.textContent = what;
    line.textContent = command;
    details.querySelector(".again").append(words, line);
  }
}

const KEYS = {
  " ": () => current.toggle(),
  ArrowLeft: () => current.seek(current.position - STEP),
  ArrowRight: () => current.seek(current.position + STEP),
  ArrowUp: () => goTo(players.indexOf(current) - 1),
  ArrowDown: () => goTo(players.indexOf(current) + 1),
  Home: () => current.seek(0),
  "+": () => current.zoom(ZOOM),
  "-": () => current.zoom(1 / ZOOM),
};

// To another piece, which plays on if one was playing.
function goTo(place) {
  const next = players[Math.min(Math.max(place, 0), players.length - 1)];
  if (next === current) return;
  if (current.isPlaying) next.play();
  current = next;
  next.playButton.focus({ preventScroll: true });
  next.root.scrollIntoView({ block: "nearest", behavior: leaps.matches ? "auto" : "smooth" });
}

const STEPS = new Set(["ArrowLeft", "ArrowRight"]); // a slider's own would be too small

let current = null;
const players = [];
for (const about of JSON.parse(document.getElementById("music").textContent)) {
  players.push(new Player(about, players.length + 1));
}
current = players[0];

document.getElementById("volume").addEventListener("input", () => sound.setVolume());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => players.forEach((each) => each.measure()));
document.addEventListener("keydown", (event) => {
  const { target } = event, act = KEYS[event.key];
  if (!act || !current || event.ctrlKey || event.altKey || event.metaKey) return;
  const isOfInput = target.matches("input") && !(target.matches(".seek") && STEPS.has(event.key));
  if (isOfInput || (event.key === " " && target.matches("button, a, summary"))) return;
  event.preventDefault();
  act();
});
