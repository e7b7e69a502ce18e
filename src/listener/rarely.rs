//! What ends a connection from outside: its age, a reload, the end of the process. A task that waits for many things looks at all of them each
//! time it's woken; these are looked at only when one of them has called.

use std::future::poll_fn;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Wake;
use std::task::Waker;

/// Waits for what seldom happens, and is looked at often.
pub(super) async fn rarely<T>(waiting: impl Future<Output = T>) -> T {
    let call = Arc::new(Call::new());
    let waker = Waker::from(Arc::clone(&call));
    let mut waiting = pin!(waiting);
    poll_fn(|cx| call.poll(waiting.as_mut(), &waker, cx)).await
}

struct Call {
    /// It has something to say, and wasn't looked at since.
    came: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Call {
    fn new() -> Self {
        Self {
            came: AtomicBool::new(true),
            task: Mutex::default(),
        }
    }

    fn poll<T>(
        &self,
        waiting: Pin<&mut impl Future<Output = T>>,
        waker: &Waker,
        cx: &mut Context<'_>,
    ) -> Poll<T> {
        {
            let mut task = self.task();
            if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
        }
        // After the task is known, so that no call falls between the two.
        if !self.came.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        waiting.poll(&mut Context::from_waker(waker))
    }

    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.came.store(true, Ordering::Release);
        let task = self.task().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::rarely;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;
    use std::task::Context;
    use std::task::Poll;
    use std::task::Waker;
    use std::time::Duration;
    use tokio::sync::oneshot;
    use tokio::time::sleep;

    #[test]
    fn it_is_looked_at_once_and_then_only_when_it_has_called() {
        let looks = AtomicUsize::new(0);
        let (tell, mut told) = oneshot::channel::<()>();
        let mut waiting = pin!(rarely(poll_fn(|cx| {
            looks.fetch_add(1, Ordering::Relaxed);
            pin!(&mut told).poll(cx)
        })));
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..10 {
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        tell.send(()).expect("it waits");
        assert_eq!(waiting.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_woken_wherever_it_waits_by_then() {
        let mut waiting = Box::pin(rarely(sleep(Duration::from_secs(5))));
        let here = tokio::time::timeout(Duration::from_secs(1), waiting.as_mut());
        assert!(here.await.is_err(), "too early");
        tokio::spawn(waiting).await.expect("no panic");
    }
}
