// Notes and pedals -> pictures: the whole piece in a strip, and a part of it on a roll. Knows canvases; knows no sound.
"use strict";

const SOFT_TO_LOUD = [[95, 142, 224], [164, 91, 184], [232, 84, 47]]; // also in page.css
const PEDAL_NAMES = { 64: "sustain", 66: "sostenuto", 67: "soft" };
const LANE = 14, AXIS = 16; // pixels of a pedal's lane, and of the seconds below
const MOST_PIXELS_A_SECOND = 400;
const BLACK_KEYS = new Set([1, 3, 6, 8, 10]);

// The colour of a velocity.
function colourOf(velocity) {
  const force = Math.min(Math.max((velocity - 20) / 90, 0), 1); // pianists leave the ends of the range alone
  const place = force * (SOFT_TO_LOUD.length - 1), i = Math.min(Math.floor(place), SOFT_TO_LOUD.length - 2);
  const [from, to] = [SOFT_TO_LOUD[i], SOFT_TO_LOUD[i + 1]];
  return `rgb(${from.map((part, channel) => Math.round(part + (place - i) * (to[channel] - part))).join(" ")})`;
}

const COLOURS = Array.from({ length: 128 }, (_, velocity) => colourOf(velocity));

// Seconds between two marks of the axis, so that they stand some 60 pixels apart.
function markEvery(pixelsASecond) {
  const steps = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
  return steps.find((step) => step * pixelsASecond >= 60) ?? 7200;
}

class Roll {
  constructor(canvas, overview, { notes, pedal, seconds, newFrom }) {
    Object.assign(this, { canvas, overview, notes, seconds: Math.max(seconds, 0.1), newFrom });
    this.left = 0; // the second at the left edge
    this.longest = notes.reduce((most, note) => Math.max(most, note.end - note.onset, note.offset - note.onset), 0);
    const lowest = notes.reduce((low, note) => Math.min(low, note.pitch), 127);
    const highest = notes.reduce((high, note) => Math.max(high, note.pitch), 0);
    const room = Math.max(2, Math.ceil((36 - (highest - lowest)) / 2)); // three octaves at least
    this.lowest = Math.max(0, lowest - room);
    this.highest = Math.min(127, highest + room);
    this.lanes = [64, 66, 67]
      .map((control) => ({ name: PEDAL_NAMES[control], moves: pedal.filter((move) => move.control === control) }))
      .filter((lane) => lane.moves.length);
    this.span = this.seconds <= 60 ? this.seconds : 30; // seconds that are seen
    this.measure();
  }

  // To be called whenever the size or the colours of the page have changed.
  measure() {
    const style = getComputedStyle(document.documentElement);
    this.inks = {};
    for (const name of ["ink", "quiet", "grid", "black-keys", "prime", "accent", "roll"]) {
      this.inks[name] = style.getPropertyValue(`--${name}`).trim();
    }
    for (const canvas of [this.canvas, this.overview]) {
      canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
      canvas.height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
    }
    this.whole = null; // the overview without what moves
    this.show(this.left, this.span);
  }

  get width() {
    return Math.max(1, this.canvas.clientWidth);
  }

  get pixelsASecond() {
    return this.width / this.span;
  }

  // Shows `span` seconds from `left` on, as far as there is music.
  show(left, span = this.span) {
    this.span = Math.min(Math.max(span, this.width / MOST_PIXELS_A_SECOND), this.seconds);
    this.left = Math.min(Math.max(left, 0), this.seconds - this.span);
  }

  // Closer by a factor, where `second` stays in its place.
  zoom(factor, second) {
    const share = (second - this.left) / this.span;
    this.show(this.left, this.span / factor);
    this.show(second - share * this.span);
  }

  // Keeps a second in sight; in leaps, for those whom moving pictures disturb.
  follow(second, inLeaps) {
    if (inLeaps) {
      if (second < this.left || second > this.left + 0.95 * this.span) this.show(second - 0.05 * this.span);
    } else {
      this.show(second - 0.3 * this.span);
    }
  }

  secondAt(x) {
    return Math.min(Math.max(this.left + x / this.pixelsASecond, 0), this.seconds);
  }

  draw(position) {
    this.drawRoll(position);
    this.drawOverview(position);
  }

  drawRoll(position) {
    const paint = this.brush(this.canvas), { width } = this, height = this.canvas.clientHeight;
    const bottom = height - AXIS - LANE * this.lanes.length, scale = this.pixelsASecond;
    const x = (second) => (second - this.left) * scale;
    const key = bottom / (this.highest - this.lowest + 1), y = (pitch) => (this.highest - pitch) * key;
    for (let pitch = this.lowest; pitch <= this.highest; pitch++) {
      if (BLACK_KEYS.has(pitch % 12)) this.box(paint, this.inks["black-keys"], 0, y(pitch), width, key);
    }
    this.drawPrime(paint, x, height, true);
    this.drawAxis(paint, x, bottom, height);
    paint.font = "10px system-ui, sans-serif";
    for (let pitch = Math.ceil(this.lowest / 12) * 12; pitch <= this.highest; pitch += 12) {
      this.box(paint, this.inks.grid, 0, y(pitch) + key, width, 1);
    }
    const thick = Math.max(2, key - 1);
    for (let i = firstFrom(this.notes, this.left - this.longest); i < this.notes.length; i++) {
      const note = this.notes[i];
      if (note.onset > this.left + this.span) break;
      const from = x(note.onset), colour = COLOURS[note.velocity];
      paint.globalAlpha = 0.3;
      if (note.end > note.offset) this.box(paint, colour, from, y(note.pitch), (note.end - note.onset) * scale, thick);
      paint.globalAlpha = 1;
      this.box(paint, colour, from, y(note.pitch), Math.max(1.5, (note.offset - note.onset) * scale), thick);
      if (note.onset <= position && position < note.end) {
        paint.strokeStyle = this.inks.ink;
        paint.strokeRect(from, y(note.pitch), Math.max(1.5, (note.end - note.onset) * scale), thick);
      }
    }
    paint.fillStyle = this.inks.quiet;
    for (let pitch = Math.ceil(this.lowest / 12) * 12; pitch <= this.highest; pitch += 12) {
      paint.fillText(`C${pitch / 12 - 1}`, 3, y(pitch) + key - 2);
    }
    this.lanes.forEach((lane, i) => this.drawLane(paint, lane, x, bottom + LANE * i));
    this.box(paint, this.inks.accent, x(position) - 1, 0, 2, height);
  }

  // How deep a pedal is, as a band.
  drawLane(paint, { name, moves }, x, top) {
    this.box(paint, this.inks.grid, 0, top, this.width, 1);
    paint.fillStyle = this.inks.quiet;
    paint.globalAlpha = 0.6;
    moves.forEach(({ time, value }, i) => {
      const until = i + 1 < moves.length ? moves[i + 1].time : this.seconds;
      if (!value || until < this.left || time > this.left + this.span) return;
      const depth = ((LANE - 3) * value) / 127;
      paint.fillRect(x(time), top + LANE - 1 - depth, Math.max(0.5, x(until) - x(time)), depth);
    });
    paint.globalAlpha = 1;
    paint.fillStyle = this.inks.ink;
    paint.fillText(name, 3, top + LANE - 3);
  }

  drawAxis(paint, x, bottom, height) {
    const step = markEvery(this.pixelsASecond);
    paint.font = "11px system-ui, sans-serif";
    for (let second = Math.ceil(this.left / step) * step; second <= this.left + this.span; second += step) {
      this.box(paint, this.inks.grid, x(second), 0, 1, height);
      paint.fillStyle = this.inks.quiet;
      paint.fillText(step < 1 ? second.toFixed(1) : clockTime(second), x(second) + 3, height - 4);
    }
  }

  // Where a prime stands, and where what is new begins.
  drawPrime(paint, x, height, withWords) {
    if (this.newFrom === null) return;
    const seam = x(this.newFrom);
    this.box(paint, this.inks.prime, x(0), 0, seam - x(0), height);
    this.box(paint, this.inks.ink, seam, 0, 1, height);
    if (!withWords) return;
    paint.font = "11px system-ui, sans-serif";
    paint.fillStyle = this.inks.ink;
    paint.fillText("new from here", seam + 4, 12);
    const word = "prime";
    paint.fillText(word, seam - 4 - paint.measureText(word).width, 12);
  }

  drawOverview(position) {
    const { width } = this, height = this.overview.clientHeight;
    const scale = this.overview.clientWidth / this.seconds;
    this.whole ??= this.drawWhole(height, scale);
    const paint = this.brush(this.overview);
    paint.drawImage(this.whole, 0, 0, width, height);
    if (this.span < this.seconds) {
      paint.strokeStyle = this.inks.ink;
      paint.strokeRect(this.left * scale + 0.5, 0.5, Math.max(3, this.span * scale - 1), height - 1);
    }
    this.box(paint, this.inks.accent, position * scale - 1, 0, 2, height);
  }

  drawWhole(height, scale) {
    const whole = document.createElement("canvas");
    whole.width = this.overview.width;
    whole.height = this.overview.height;
    const paint = this.brush(whole), key = height / (this.highest - this.lowest + 1);
    this.drawPrime(paint, (second) => second * scale, height, false);
    for (const note of this.notes) {
      const x = note.onset * scale, y = (this.highest - note.pitch) * key;
      const width = Math.max(0.7, (note.offset - note.onset) * scale);
      this.box(paint, COLOURS[note.velocity], x, y, width, Math.max(1, key));
    }
    return whole;
  }

  // What draws on a canvas in the page's pixels, whatever the screen's are; the canvas is empty.
  brush(canvas) {
    const paint = canvas.getContext("2d");
    paint.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    paint.clearRect(0, 0, canvas.width, canvas.height);
    return paint;
  }

  box(paint, colour, x, y, width, height) {
    paint.fillStyle = colour;
    paint.fillRect(x, y, width, height);
  }
}
