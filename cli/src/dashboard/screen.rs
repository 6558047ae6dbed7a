//! The terminal: taken over while this lives, and given back as it was, whatever happens.
//!
//! Owns raw mode, the alternate screen and the thread that reads keys. Given back when dropped (the end, an error,
//! a signal that drops the command) and by the panic hook before a panic is told.

use std::io::{self, Stdout};
use std::sync::Once;
use std::thread;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use tokio::sync::mpsc;

use super::draw::draw;
use super::model::Model;

/// Keys that wait to be looked at; more than anybody types between two looks.
const EVENTS_MAX: usize = 64;
/// How often the reader sees whether anybody still listens.
const LISTEN: Duration = Duration::from_millis(100);

pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    pub fn open() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        let taken = execute!(io::stdout(), EnterAlternateScreen, Hide)
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        taken.map(|terminal| Self { terminal }).inspect_err(|_| give_back())
    }

    /// Draws the model in the size that the terminal has now.
    pub fn draw(&mut self, model: &mut Model) -> io::Result<()> {
        let mut last = [0; 3];
        self.terminal.draw(|frame| last = draw(frame.buffer_mut(), model))?;
        model.keep_within(last);
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// A terminal that is gone cannot be given back: nothing to do about it.
fn give_back() {
    let _ = disable_raw_mode();
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
}

/// Events of the terminal, until nobody listens. The channel ends where the terminal cannot be read.
pub fn events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(LISTEN) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if sender.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}
